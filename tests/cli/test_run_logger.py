"""Runs that start together, and what is written of an iteration."""

import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from app.cli.run_logger import RunLogger


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    for turn in range(20):
        start, folders = threading.Barrier(6), []

        def claim(name: str = f"run-{turn}", start: threading.Barrier = start, folders: list[str] = folders) -> None:
            logger = RunLogger(tmp_path, name)
            start.wait()
            folders.append(logger.log_dir)

        threads = [threading.Thread(target=claim) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(folders) == [str(tmp_path / f"run-{turn}" / f"version_{number}") for number in range(6)]
        assert all(Path(folder).is_dir() for folder in folders)


def test_one_run_keeps_its_folder_and_other_ranks_claim_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunLogger(tmp_path, "run")
    assert logger.log_dir == logger.log_dir == str(tmp_path / "run" / "version_0")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert RunLogger(tmp_path, "run").log_dir == str(tmp_path / "run" / "version_0")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["version_0"]


def test_an_iterations_numbers_are_one_event_and_all_of_them_arrive(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "run")
    for step in range(3):
        logger.log_metrics({"reward": 0.5 + step, "speed/time/other": 0.25, "epoch": 0}, step)
    logger.log_metrics({"eval/gsm8k/accuracy": 0.75, "share": torch.tensor(1.0)}, 2)  # Lightning's own way
    logger.save()
    found = EventAccumulator(logger.log_dir).Reload()
    assert [(each.step, each.value) for each in found.Scalars("reward")] == [(0, 0.5), (1, 1.5), (2, 2.5)]
    assert [each.value for each in found.Scalars("speed/time/other")] == [0.25] * 3
    assert [each.value for tag in ("eval/gsm8k/accuracy", "share") for each in found.Scalars(tag)] == [0.75, 1.0]
    (file,) = Path(logger.log_dir).glob("events*")
    together = [len(event.summary.value) for event in EventFileLoader(str(file)).Load() if event.summary.value]
    assert together == [2, 2, 2, 1, 1]
