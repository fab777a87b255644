"""From a raw row of a file or a dataset to a :class:`Problem`, or to the reason why it cannot be one."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any, Literal, get_args

from app.data.conversations import read_conversation, wrong_speaker
from app.data.problems import Problem, Turn
from app.errors import ConfigurationError, closest
from app.seeds import derive_seed

AnswerFormat = Literal["plain", "integer", "after_hashes", "last_box", "list", "none"]
MalformedPolicy = Literal["skip", "refuse"]

LARGEST_EXACT = 2**53
"""Up to here a float holds every integer."""

_MISSING = object()


class MalformedRowError(ValueError):
    """A row that is no problem; the message says why."""


@dataclass(frozen=True)
class RowSettings:
    """How rows are read.

    Attributes:
        columns: our names (``problem``, ``answer``, ``id``, or any further one) → the dataset's columns; dots
            go into structures and lists (``reward_model.ground_truth``, ``prompt.0.content``). A
            problem may be a list of turns with ``role`` and ``content``, the last of them the user's. Columns of a
            row that are not named here are kept under their own names.
        answer_format: ``plain``: as it stands. ``integer``: ``025``, ``27.0`` and the number 27 become ``25``
            and ``27``. ``after_hashes``: what follows the last ``####``, without thousands commas (GSM8K).
            ``last_box``: the contents of the last ``\\boxed{}`` (or ``\\boxed 2``). ``list``: a list of strings, also
            as JSON text (``["34"]``), joined by commas. ``none``: the rows have no gold answers, and their problems
            get an empty one: for rewards that ask for none.
        malformed: ``skip`` rows that are no problem (counted and named), or ``refuse`` the whole source.
        max_characters: a problem or an answer longer than this makes a row malformed.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    answer_format: AnswerFormat = "plain"
    malformed: MalformedPolicy = "skip"
    max_characters: int = 20_000

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ConfigurationError(f"must be at least 1, got {self.max_characters}", key="max_characters")
        formats = get_args(AnswerFormat)
        if self.answer_format not in formats:
            raise ConfigurationError(
                f"unknown {self.answer_format!r}; {nearest(self.answer_format, formats)}", key="answer_format"
            )
        if self.malformed not in ("skip", "refuse"):
            raise ConfigurationError(f"is skip or refuse, got {self.malformed!r}", key="malformed")

    @property
    def has_answers(self) -> bool:
        """Whether rows hold gold answers."""
        return self.answer_format != "none"

    def column(self, name: str) -> str:
        """The dataset's column for one of our names."""
        return self.columns.get(name, name)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The tail of an error message: the valid names, and the one nearest to what was written."""
    names = sorted(valid)
    near = closest(name, names, cutoff=0.5)
    hint = f"did you mean {near!r}? There" if near else "there"
    return f"{hint} are: {', '.join(names) if names else 'none'}"


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value under a (dotted) column; a private marker where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row holds this (dotted) column, be it empty."""
    return value_at(row, column) is not _MISSING


def read_row(row: Any, number: int | None, source: str, settings: RowSettings) -> Problem:
    """The problem in a row. Raises :class:`MalformedRowError`.

    Args:
        row: as read.
        number: of the row, from 1, or None where rows come in no fixed order. A row without an id of its own
            is called by its number, or by a hash of its problem.
        source: the source's name.
        settings: see :class:`RowSettings`.
    """
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"is not an object but {type(row).__name__}")
    statement, history = _statement(row, settings)
    answer = _answer(row, settings) if settings.has_answers else ""
    identifier = value_at(row, settings.column("id"))
    if identifier is _MISSING or identifier is None:
        identifier = f"{source}-{derive_seed(statement) if number is None else number}"
    return Problem(
        id=str(identifier),
        problem=statement,
        answer=answer,
        source=source,
        extra=_extra(row, settings),
        history=history,
    )


def _statement(row: Mapping[str, Any], settings: RowSettings) -> tuple[str, tuple[Turn, ...]]:
    """The problem, and the turns that it goes on where it is a conversation."""
    column = settings.column("problem")
    value = value_at(row, column)
    history: tuple[Turn, ...] = ()
    if wrong := wrong_speaker(row, column, value_at):
        raise MalformedRowError(wrong)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value, history = read_conversation(value, MalformedRowError)
        for _, content in history:
            if len(content) > settings.max_characters or not is_unicode(content):
                raise MalformedRowError("a turn before its problem is wrongly encoded or over the limit of characters")
    return _checked_text(value, "problem", settings), history


def _answer(row: Mapping[str, Any], settings: RowSettings) -> str:
    raw = value_at(row, settings.column("answer"))
    if raw is _MISSING or raw is None:
        raise MalformedRowError("the answer is missing")
    return _checked_text(ANSWER_READERS[settings.answer_format](raw), "answer", settings)


def _extra(row: Mapping[str, Any], settings: RowSettings) -> dict[str, Any]:
    used = {settings.column(name) for name in ("problem", "answer", "id")}
    extra = {key: value for key, value in row.items() if key not in used}
    for name, column in settings.columns.items():
        if name not in ("problem", "answer", "id") and has_column(row, column):
            extra[name] = value_at(row, column)
    return extra


def _checked_text(value: Any, name: str, settings: RowSettings) -> str:
    if value is _MISSING or value is None:
        raise MalformedRowError(f"the {name} is missing")
    if not isinstance(value, str):
        advice = " (answer_format: integer takes numbers)" if name == "answer" and type(value) in (int, float) else ""
        if isinstance(value, date | time):
            advice = " (datasets reads a column of dates as dates: JsonLinesSource reads the file as it is written)"
        raise MalformedRowError(f"the {name} is not a string but {type(value).__name__}{advice}")
    text = value.strip()
    if not text:
        raise MalformedRowError(f"the {name} is empty")
    if len(text) > settings.max_characters:
        raise MalformedRowError(f"the {name} has {len(text)} characters, over the limit of {settings.max_characters}")
    if not is_unicode(text):
        raise MalformedRowError(f"the {name} is wrongly encoded (a lone surrogate or a replacement character)")
    return text


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which no tokenizer takes, and for U+FFFD, a failed decoding."""
    return not any("\ud800" <= character <= "\udfff" or character == "\ufffd" for character in text)


def _plain(value: Any) -> Any:
    return value


def _integer(value: Any) -> Any:
    """Drops leading zeros and a fraction of zeros; what is no integer stays as it stands."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and LARGEST_EXACT < abs(value) < math.inf:
        raise MalformedRowError(
            f"the answer {value!r} was read as a float, which holds integers up to 2^53: write it as a string"
        )
    if isinstance(value, (int, float)):
        whole = math.isfinite(value) and value == int(value)
        return str(int(value)) if whole else str(value)
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([-+]?)0*(\d+)(?:\.0*)?", value.strip())
    return value if found is None else found[1].replace("+", "") + found[2]


def _after_hashes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    _, hashes, tail = value.rpartition("####")
    if not hashes:
        raise MalformedRowError("the answer column holds no '####'")
    return re.sub(r"(?<=\d),(?=\d)", "", tail)


def _last_box(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    boxes = list(re.finditer(r"\\boxed\s*(?:\{|(\w+))", value))
    if not boxes:
        raise MalformedRowError("the answer column holds no \\boxed{}")
    if boxes[-1][1] is not None:
        return boxes[-1][1]
    begin = boxes[-1].end()
    depth = 1
    for end in range(begin, len(value)):
        depth += {"{": 1, "}": -1}.get(value[end], 0)
        if depth == 0:
            return value[begin:end]
    raise MalformedRowError("the last \\boxed{ is never closed")


def _list(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # raised by what is no JSON, such as an interval
            found = _joined(json.loads(value))
            return found if isinstance(found, str) else value
    return _joined(value)


def _joined(value: Any) -> Any:
    """The strings joined by commas; anything else unchanged."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(item.strip() for item in value)
    return value


ANSWER_READERS: dict[str, Callable[[Any], Any]] = {
    "plain": _plain,
    "integer": _integer,
    "after_hashes": _after_hashes,
    "last_box": _last_box,
    "list": _list,
}
