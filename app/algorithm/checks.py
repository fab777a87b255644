"""Refusals that every file of this floor shares."""

from collections.abc import Iterable
from difflib import get_close_matches

from app.errors import ConfigurationError


def require_choice(value: str, choices: Iterable[str], key: str) -> None:
    """Raise :class:`ConfigurationError` unless ``value`` is one of ``choices``; a near miss is named."""
    names = list(choices)
    if value in names:
        return
    near = get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(f"unknown name {value!r}; {hint}choose one of {', '.join(names)}", key=key)


def require(holds: bool, rule: str, value: object, key: str) -> None:
    """Raise :class:`ConfigurationError` saying ``rule`` and the value that broke it, unless it holds."""
    if not holds:
        raise ConfigurationError(f"{rule}, got {value}", key=key)
