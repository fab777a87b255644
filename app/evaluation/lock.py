"""One evaluation at a time writes into a folder."""

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO

from app.errors import ConfigurationError


class FolderLock:
    """Holds a folder as long as the context lasts.

    The kernel lets go of it when the process ends, however it ends, so that a killed evaluation leaves nothing to
    clean up before it goes on.

    Args:
        folder: made where it does not exist.

    Raises:
        ConfigurationError: another process holds it, or it cannot be written into.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: IO[str] | None = None

    def __enter__(self) -> "FolderLock":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write into {self.folder}: {error}", key="evaluation.folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ConfigurationError(
                f"{self.folder}: {owner} is writing its evaluation there; wait for it or give another folder",
                key="evaluation.folder",
            ) from error
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
