"""Rows whose problem is a conversation: a list of turns with ``role`` and ``content``."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from app.data.problems import Turn

_CONTENT_OF_TURN = re.compile(r"(.+)\.\d+\.content")


def read_conversation(turns: list[Any], refuse: Callable[[str], Exception]) -> tuple[str, tuple[Turn, ...]]:
    """The last user's turn, and the turns before it.

    Args:
        turns: as read, at least one.
        refuse: makes the exception that says why a row cannot be used.
    """
    read: list[Turn] = []
    for number, turn in enumerate(turns, start=1):
        parts = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not all(isinstance(part, str) for part in parts):
            raise refuse(f"turn {number} of its problem has no role and content that are text")
        read.append(parts)  # type: ignore[arg-type]
    if read[-1][0] != "user":
        raise refuse(f"the last turn of its problem is the {read[-1][0]}'s, not the user's")
    return read[-1][1], tuple(read[:-1])


def wrong_speaker(row: Mapping[str, Any], column: str, value_at: Callable[[Mapping[str, Any], str], Any]) -> str:
    """Why a column such as ``prompt.0.content`` is no problem: its turn is the system's, say. Empty where it is one."""
    found = _CONTENT_OF_TURN.fullmatch(column)
    role = value_at(row, f"{column.removesuffix('content')}role") if found else "user"
    if not found or not isinstance(role, str) or role == "user":
        return ""
    return (
        f"{column} is the {role}'s turn, not the user's: columns: {{problem: {found[1]}}} takes the whole conversation"
    )
