"""What is said of a run that an error ended, and with which exit code."""

import errno
import shutil
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from app.cli.failures import ending
from app.console import speak_plainly
from app.errors import ConfigurationError, DivergenceError, causes
from app.rewards.reward import RewardError
from callbacks import IterationCheckpoint
from tests.running import fit, make_data, make_module, make_rollouts


def chained(*errors: BaseException) -> BaseException:
    """The first error, raised from the second, and so on."""
    for later, earlier in pairwise(errors):
        later.__cause__ = earlier
    return errors[0]


def test_a_circle_of_causes_is_followed_once() -> None:
    first, second = OSError("first"), RuntimeError("second")
    chained(first, second, first)
    assert list(islice(causes(first), 9)) == [first, second]
    assert ending(first, []) is None


class FolderRemoved(Callback):
    """Someone removes or renames the run's folder while it learns."""

    def __init__(self, folder: Path, moved_to: Path | None) -> None:
        self.folder, self.moved_to = folder, moved_to

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            shutil.move(self.folder, self.moved_to) if self.moved_to else shutil.rmtree(self.folder)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_run_whose_folder_goes_away_ends_with_one_line_and_a_checkpoint(
    tmp_path: Path, renamed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run")
    gone = FolderRemoved(Path(logger.log_dir), tmp_path / "elsewhere" if renamed else None)
    keep = IterationCheckpoint(every_n_iterations=50)
    speak_plainly()
    with pytest.raises(OSError, match="No such file") as caught:
        fit(tmp_path, make_module(), make_data(iterations=9), [make_rollouts(), gone, keep], logger=logger)
    said = ending(caught.value, [])
    assert said is not None
    assert said[0].startswith(f"cannot use {logger.log_dir}/events")
    assert said[0].endswith("No such file or directory; was its folder removed or renamed meanwhile?")
    assert said[1] == 1
    assert keep.last is not None  # what was learned is not lost with the folder
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_is_one_line_that_names_the_file() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "tmp", None, "run/iteration-000002.ckpt.unfinished")
    expected = (
        "cannot write run/iteration-000002.ckpt.unfinished: No space left on device; what was saved before is whole; "
        "make room and go on from there"
    )
    assert ending(full, []) == (expected, 1)
    assert ending(OSError("a library's own message"), []) is None


def test_an_error_that_saving_failed_after_comes_first() -> None:
    failed = chained(OSError(errno.EROFS, "Read-only file system", "last.ckpt"), DivergenceError("not finite"))
    assert ending(failed, []) == (
        "not finite; and then: cannot write last.ckpt: Read-only file system; this process lacks the permission",
        1,
    )


def test_a_wrong_setting_is_exit_code_2_and_a_stop_1_in_one_line() -> None:
    assert ending(chained(ValueError("pages"), ConfigurationError("the cause", key="a.b")), []) == ("a.b: the cause", 2)
    assert ending(RewardError("two\n  lines"), []) == ("two lines", 1)
    assert ending(ValueError("another"), []) is None
