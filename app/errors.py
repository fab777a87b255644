"""The errors that the command line turns into a single line, and what the messages of bad settings share."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class ConfigurationError(ValueError):
    """A setting, file or row that cannot work; the message says what is wrong, where, and what to do.

    Args:
        message: one line.
        key: the dotted configuration key to blame, such as ``model.objective.lam``, where one is known.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class CommonError(RuntimeError):
    """Ends a run with a message for its user. All ranks raise it together, never in the middle of an update: what is
    behind can be saved, and no rank waits for another."""


class DivergenceError(CommonError):
    """The policy has left the finite numbers, or the limits that were set."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what it was raised from, and so on, each once: an exception that is raised again while its own
    consequence is handled makes the chain a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def closest(written: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``valid`` that ``written`` was probably meant to be, or None."""
    return next(iter(get_close_matches(written, list(valid), n=1, cutoff=cutoff)), None)


def require_choice(value: str, choices: Iterable[str], key: str, listed: bool = True) -> None:
    """Raises :class:`ConfigurationError` unless ``value`` is one of ``choices``.

    The nearest one is named and, if ``listed``, all of them.
    """
    names = list(choices)
    if value in names:
        return
    near = closest(str(value), names)
    hint = f"; did you mean {near!r}?" if near else ""
    options = f"; choose one of {', '.join(names)}" if listed else ""
    raise ConfigurationError(f"unknown name {value!r}{hint}{options}", key=key)


def require(holds: bool, rule: str, value: object, key: str) -> None:
    """Raises :class:`ConfigurationError` saying ``rule`` and the value that broke it, unless it holds."""
    if not holds:
        raise ConfigurationError(f"{rule}, got {value}", key=key)
