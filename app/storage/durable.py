"""Files and folders that are there whole or not at all, after a kill and after a power failure.

Whatever takes longer than a moment to write is written under another name, synced to the disk, and put into its place
in one step. What a kill leaves of it ends in :data:`UNFINISHED`, so that the next start can clear it.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

UNFINISHED = ".unfinished"
_FORMER = ".former" + UNFINISHED
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def unfinished(target: Path) -> Path:
    """Where to write what :func:`install` is going to put at ``target``: beside it, on the same disk."""
    return target.with_name(target.name + UNFINISHED)


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Has ``write`` make a file or folder at the path that it is given, and puts it at ``target`` in one step.

    Raises:
        OSError: the disk is full, or the place cannot be written into; what was at ``target`` is still there, and
            nothing is left of the attempt.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = unfinished(target)
    remove(fresh)
    try:
        write(fresh)
        install(fresh, target)
    finally:
        remove(fresh)


def write_bytes(target: Path, content: bytes) -> None:
    """Puts the whole ``content`` at ``target``, or leaves what was there; see :func:`write_whole`."""

    def write(fresh: Path) -> None:
        fresh.write_bytes(content)

    write_whole(target, write)


def install(fresh: Path, target: Path) -> None:
    """Puts the file or folder ``fresh`` in the place of whatever is at ``target``, in one step.

    It is synced first, and its folder after: a computer that loses its power has the one or the other, whole. A
    folder changes places with the former one, where system and file system can do that (Linux, and local ones);
    elsewhere the former one steps aside first.
    """
    sync(fresh)
    if target.is_dir() and not target.is_symlink():  # a rename replaces no folder with files in it
        _exchange(fresh, target)
        sync_folder(target.parent)
        remove(fresh)
    else:
        if fresh.is_dir():  # nor anything else by a folder
            target.unlink(missing_ok=True)
        os.replace(fresh, target)
        sync_folder(target.parent)


def link(target: Path, name: Path) -> None:
    """Makes ``name`` a symbolic link to ``target``, a neighbour, in one step: there is one at any time."""
    fresh = unfinished(name)
    remove(fresh)
    fresh.symlink_to(target.name)
    os.replace(fresh, name)
    sync_folder(name.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, files in os.walk(path):
        for file in files:
            _sync(Path(folder) / file)
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Waits until the names in ``folder`` are on the disk, where its file system can say so."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_unfinished(folder: Path, pattern: str = "*") -> list[Path]:
    """Removes what a kill left half written in ``folder``, into which nothing else may be writing. What had stepped
    aside for a successor that never came takes its place again.

    Returns:
        What was removed.
    """
    for aside in folder.glob(pattern + _FORMER):
        target = aside.with_name(aside.name.removesuffix(_FORMER))
        if not target.exists():
            os.rename(aside, target)
    left = sorted({*folder.glob(pattern + UNFINISHED), *folder.glob(pattern + _FORMER)})
    for path in left:
        remove(path)
    return left


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_EXCHANGE:
            raise OSError(code, os.strerror(code), str(other))
    aside = other.with_name(other.name + _FORMER)
    remove(aside)
    os.rename(other, aside)
    os.rename(one, other)
    remove(aside)
