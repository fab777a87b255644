"""What a run leaves where something goes wrong: the former checkpoint, whole, and none that is worth nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from app.errors import ConfigurationError, DivergenceError
from callbacks import HFExport, IterationCheckpoint
from tests.command_line import ROOT, environment
from tests.running import fit, make_benchmarks, make_data, make_module, make_rollouts


class After(Callback):
    """Does something to the policy when an iteration is over, before what is behind it in the list of callbacks."""

    def __init__(self, iteration: int, action: Any) -> None:
        self.iteration, self.action = iteration, action

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration:
            self.action(pl_module)


def spoil(module: Any) -> None:
    with torch.no_grad():
        next(module.policy.parameters())[0, 0] = float("nan")


class FaultBefore(Callback):
    """Raises where an iteration begins."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration:
            raise RuntimeError("a fault of the run")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def run(folder: Path, *callbacks: Callback, every: int = 2, iterations: int = 4, **changes: Any) -> None:
    keep = IterationCheckpoint(every, folder=str(folder / "c"), **changes)
    fit(folder, make_module(), make_data(iterations=iterations), [*callbacks, make_rollouts(), keep])


def test_a_rescue_never_drops_the_former_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault of the run"):
        run(tmp_path, FaultBefore(4), iterations=9)
    assert names(tmp_path / "c") == ["iteration-000002.ckpt", "iteration-000003.ckpt", "last.ckpt"]


def test_a_rescue_saves_no_weights_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="a fault of the run"), caplog.at_level("INFO"):
        run(tmp_path, After(3, spoil), FaultBefore(4), iterations=9)
    assert names(tmp_path / "c") == ["iteration-000002.ckpt", "last.ckpt"]
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "iteration-000002.ckpt"


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"model\.embed_tokens\.weight.* not finite"):
        run(tmp_path, After(4, spoil), HFExport(str(tmp_path / "hf")))
    assert names(tmp_path / "c") == ["iteration-000002.ckpt", "last.ckpt"]
    assert not (tmp_path / "hf").exists()


def test_an_export_alone_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    callbacks = [make_rollouts(), After(2, spoil), HFExport(str(tmp_path / "hf"))]
    with pytest.raises(DivergenceError, match=r"not exported: its weight model\.embed_tokens\.weight"):
        fit(tmp_path, make_module(), make_data(iterations=2), callbacks)
    assert not (tmp_path / "hf").exists()


def test_neither_a_score_nor_weights_that_are_not_finite_are_the_best(tmp_path: Path) -> None:
    scores = iter([float("nan"), 0.2, 0.1])

    class Scores(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("eval/x/accuracy", next(scores), logger=False)

    keep = IterationCheckpoint(9, monitor="eval/x/accuracy", folder=str(tmp_path / "c"))
    data = make_data(iterations=3, benchmarks=make_benchmarks(2))
    fit(tmp_path, make_module(), data, [make_rollouts(), Scores(), keep], val_check_interval=1)
    assert keep.best_score == pytest.approx(0.2)


def test_a_disk_that_is_full_at_the_rescue_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning import Trainer

    def full_disk(trainer: Trainer, path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full_disk)
    with pytest.raises(RuntimeError, match="a fault of the run"):
        run(tmp_path, FaultBefore(3), every=9)
    assert names(tmp_path / "c") == []


def test_a_second_run_in_one_folder_of_checkpoints_is_refused_and_a_killed_one_is_not_in_the_way(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from app.storage.lock import FolderLock; lock = FolderLock(sys.argv[1]); lock.__enter__(); "
        "print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    other = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        from callbacks import iteration_checkpoint

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(iteration_checkpoint, "RESTART_PATIENCE_S", 0.0)
            with pytest.raises(ConfigurationError, match=rf"checkpoint\.folder: .*process {other.pid} .* is writing"):
                run(tmp_path)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    (tmp_path / "c" / "iteration-000001.ckpt.unfinished").write_bytes(b"half")
    run(tmp_path)
    assert names(tmp_path / "c") == ["iteration-000004.ckpt", "last.ckpt"]


def test_an_export_that_a_kill_left_half_written_is_cleared_by_the_next_start(tmp_path: Path) -> None:
    for name in ("hf", "hf-iteration-2"):
        (tmp_path / f"{name}.unfinished").mkdir()
        (tmp_path / f"{name}.unfinished" / "config.json").write_text("{}")
    (tmp_path / "hfother.unfinished").mkdir()
    fit(tmp_path, make_module(), make_data(iterations=1), [make_rollouts(), HFExport(str(tmp_path / "hf"))])
    assert {path.name for path in tmp_path.iterdir()} >= {"hf", "hfother.unfinished"}
    assert not list(tmp_path.glob("hf.unfinished")) + list(tmp_path.glob("hf-*"))
