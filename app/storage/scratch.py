"""Temporary folders that a kill does not leave behind for ever: the next process that needs one clears them."""

import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType

from app.errors import ConfigurationError
from app.storage.lock import LOCK, FolderLock

_NEW_S = 60.0
"""So long a folder without a lock may belong to a process that is just about to take it."""


class ScratchFolder:
    """A folder below the system's temporary one, held as long as this process lives or until it is closed.

    All of a user lie in one folder, ``grpo-lambda-<user's number>``; making one clears those there whose process was
    killed.

    Args:
        name: what it is for; the folder's name begins with it.

    Attributes:
        path: the folder.
    """

    def __init__(self, name: str) -> None:
        root = _root()
        self.path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
        self._lock = FolderLock(self.path, key="TMPDIR", what="temporary files")
        self._lock.__enter__()
        # also where nobody closes it
        self._removal = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        for folder in root.iterdir():
            if folder != self.path and _is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes it; safe to call again."""
        self._removal()
        self._lock.__exit__(None, None, None)


def _root() -> Path:
    """The user's folder; a new one where somebody else has made it, who could put files into ours."""
    root = Path(tempfile.gettempdir()) / f"grpo-lambda-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or root.is_symlink():
        return Path(tempfile.mkdtemp(prefix=f"{root.name}-"))
    return root


def _is_dead(folder: Path) -> bool:
    try:
        if not (folder / LOCK).is_file():
            return time.time() - folder.stat().st_mtime > _NEW_S
        with FolderLock(folder) as lock:
            return lock.works
    except (ConfigurationError, OSError):  # it is held, or has gone meanwhile
        return False
