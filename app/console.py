"""How lines on standard error look: warnings say that they are, and notices that help nobody are left out."""

import logging
import sys
import threading
import warnings
from pathlib import Path

from tqdm import tqdm

OWN = ("app", "callbacks", "datamodules", "modules")
"""Packages whose log this is."""
NOTICES = (
    "`Trainer.fit` stopped: `max_epochs=1` reached.",  # every run ends so
    "TPU available: False, using: 0 TPU cores",
    "litlogger",  # an advertisement
    "`weights_only` was not set",  # a default nobody asked about
)
"""Parts of lines of Lightning's."""
UNHEEDED = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*No device id is provided.*",
    ".*LightningCLI's args parameter is intended.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    # Where every group of a rollout is tied, no optimiser step is due, and the schedule goes on all the same.
    ".*lr_scheduler.step\\(\\).*before.*optimizer.step\\(\\).*",
    # Under `validate` there is nothing to resume, and `fit` may leave out a callback on purpose.
    ".*callbacks used to create the checkpoint need to be provided.*",
)
"""Warnings that a user can do nothing about."""


class ConsoleHandler(logging.Handler):
    """Writes records to standard error without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        prefix = f"{level}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)


class WithoutNotices(logging.Filter):
    """Leaves out :data:`NOTICES`."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(notice in message for notice in NOTICES)


def speak_plainly() -> None:
    """Sets up this process's standard error; safe to call again."""
    for name in OWN:
        log = logging.getLogger(name)
        if not any(isinstance(handler, ConsoleHandler) for handler in log.handlers):
            log.addHandler(ConsoleHandler())
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        lightning = logging.getLogger(f"lightning.pytorch.{name}")
        if not any(isinstance(each, WithoutNotices) for each in lightning.filters):
            lightning.addFilter(WithoutNotices())
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # that there is no Triton on a CPU
    # Of a kernel for 4-bit weights, which nothing here has; peft imports bitsandbytes wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.formatwarning = _line
    threading.excepthook = _thread_ended
    for pattern in UNHEEDED:
        warnings.filterwarnings("ignore", pattern)


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning without the place in a library that happened to raise it."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {kind}{' '.join(str(message).split())}\n"


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """No traceback where TensorBoard's writer ends: its error is raised in the main thread too, by the flush that
    follows each iteration and the run."""
    if not type(ended.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(ended)


def program(name: str) -> str:
    """A program beside this Python, as short as it can be typed here."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
