"""One line, and an exit code, for whatever ends a run."""

import errno
import os
from collections.abc import Sequence

from app.cli.errors import Source, configuration_error, explain
from app.engines.lost_ranks import lost_connection
from app.errors import CommonError, causes

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that only writing meets."""
FILE_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "what was saved before is whole; make room and go on from there"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "this process lacks the permission"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "was its folder removed or renamed meanwhile?"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "the disk or the network drive below it fails"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
}
"""By the number of an operating system's error with a file, what to look at."""


def ending(error: BaseException, sources: Sequence[Source]) -> tuple[str, int] | None:
    """What to say of a run that ``error`` ended, in one line, and its exit code; None for what only a traceback tells.

    Where saving or logging failed in the wake of another error, that one comes first.
    """
    if isinstance(error, CommonError):
        return _one_line(str(error)), 1
    root = configuration_error(error)
    if root is not None:
        return explain(root, sources), 2
    if lost_connection(error) and (notes := [note for cause in causes(error) for note in _notes(cause)]):
        return _one_line(notes[0]), 1
    first = next((cause for cause in causes(error) if isinstance(cause, CommonError)), None)
    lines = [_one_line(str(first))] if first else []
    lines += [line for cause in causes(error) if (line := file_line(cause))][:1]
    return ("; and then: ".join(lines), 1) if lines else None


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])  # of :class:`callbacks.LostRank`


def file_line(error: BaseException) -> str | None:
    """One line on an operating system's error with a file or a disk; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in FILE_ADVICE:
        return None
    place = error.filename2 or error.filename
    place = "a file of the run" if place is None or isinstance(place, int) else os.fsdecode(place)
    action = "write" if error.errno in WRITING else "use"
    return f"cannot {action} {place}: {error.strerror}; {FILE_ADVICE[error.errno]}"


def _one_line(message: str) -> str:
    return " ".join(message.split())
