"""How lines on standard error look."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from app.console import OWN, ConsoleHandler, WithoutNotices, speak_plainly


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    form = warnings.formatwarning
    yield
    warnings.formatwarning = form
    for name in OWN:
        log = logging.getLogger(name)
        log.handlers = [handler for handler in log.handlers if not isinstance(handler, ConsoleHandler)]


def test_a_warning_of_the_project_says_that_it_is_one_once(capsys: pytest.CaptureFixture[str]) -> None:
    speak_plainly()
    speak_plainly()
    logging.getLogger("datamodules.base").warning("a: %d of 3 rows kept", 2)
    assert capsys.readouterr().err == "warning: a: 2 of 3 rows kept\n"


def test_a_python_warning_is_one_line_without_a_place_in_a_library() -> None:
    speak_plainly()
    assert warnings.formatwarning("of two\n  lines", UserWarning, "lib.py", 7) == "warning: of two lines\n"
    assert warnings.formatwarning("x", FutureWarning, "lib.py", 7) == "warning: FutureWarning: x\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("`Trainer.fit` stopped: `max_epochs=1` reached.", False),
        ("`Trainer.fit` stopped: `max_time` reached.", True),
        ("TPU available: False, using: 0 TPU cores", False),
        ("GPU available: True (cuda), used: False", True),
    ],
)
def test_notices_that_help_nobody_are_left_out(line: str, shown: bool) -> None:
    assert WithoutNotices().filter(logging.LogRecord("x", logging.INFO, "", 0, line, (), None)) == shown


def test_a_library_that_is_only_looked_at_does_not_speak(capsys: pytest.CaptureFixture[str]) -> None:
    speak_plainly()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert capsys.readouterr().err == ""
