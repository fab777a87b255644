"""How lines on standard error look: warnings say that they are, and notices that help nobody are left out."""

import logging
import sys
import warnings

from tqdm import tqdm

OWN = ("app", "callbacks", "datamodules", "modules")
"""Packages whose log this is."""
NOTICES = (
    "`Trainer.fit` stopped: `max_epochs=1` reached.",  # every run ends so
    "TPU available: False, using: 0 TPU cores",
)


class ConsoleHandler(logging.Handler):
    """Writes records to standard error without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        prefix = f"{level}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)


class WithoutNotices(logging.Filter):
    """Leaves out :data:`NOTICES`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.getMessage() not in NOTICES


def speak_plainly() -> None:
    """Sets up this process's standard error; safe to call again."""
    for name in OWN:
        log = logging.getLogger(name)
        if not any(isinstance(handler, ConsoleHandler) for handler in log.handlers):
            log.addHandler(ConsoleHandler())
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if not any(isinstance(each, WithoutNotices) for each in lightning.filters):
        lightning.addFilter(WithoutNotices())
    # Of a kernel for 4-bit weights, which nothing here has; peft imports bitsandbytes wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.formatwarning = _line
    # Under `validate` there is nothing to resume, and `fit` may leave out a callback on purpose.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")


def _line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning without the place in a library that happened to raise it."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {kind}{' '.join(str(message).split())}\n"
