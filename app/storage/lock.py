"""One run at a time writes into a folder."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from app.errors import ConfigurationError
from app.storage.durable import clear_unfinished

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class FolderLock:
    """Holds a folder as long as the context lasts.

    The kernel lets go of it when the process ends, however it ends, so that a killed run leaves nothing to clean up
    before it goes on.

    Args:
        folder: made where it does not exist.
        key: the configuration key that names the folder.
        what: what is being written into it.
        patience_s: how long to wait for another process to let go: one that was killed may leave children behind that
            end moments later.

    Attributes:
        works: whether the file system knows locks; where it does not (some network disks), the folder is shared.

    Raises:
        ConfigurationError: another process holds it, or it cannot be written into.
    """

    def __init__(
        self,
        folder: str | Path,
        key: str = "evaluation.folder",
        what: str = "its evaluation",
        patience_s: float = 0.0,
    ) -> None:
        self.folder, self.key, self.what, self.patience_s = Path(folder), key, what, patience_s
        self.works = True
        self._file: IO[str] | None = None

    def __enter__(self) -> "FolderLock":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write into {self.folder}: {error}", key=self.key) from error
        held = _hold(file, self.patience_s)
        self.works = held is not None
        if held is False:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ConfigurationError(
                f"{self.folder}: {owner} is writing {self.what} there; wait for it or give another folder", key=self.key
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def clear_dead(folders: Iterable[Path]) -> list[Path]:
    """Removes what killed runs left half written in ``folders``, which they held, and in the folders around these.

    Returns:
        What was there. What a run still holds is left alone, and everything where locks do not work.
    """
    left: list[Path] = []
    for folder in folders:
        if not (folder / LOCK).is_file():
            continue
        try:
            with FolderLock(folder) as lock:
                if lock.works:
                    left += clear_unfinished(folder) + clear_unfinished(folder.parent)
        except ConfigurationError:  # a run that lives, or a folder that is not ours to write into
            continue
    return left


def _hold(file: IO[str], patience_s: float) -> bool | None:
    """Whether the lock of ``file`` could be had in time; None where there are no locks."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return None
        else:
            return True
