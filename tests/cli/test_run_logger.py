"""Runs that start together."""

import threading
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

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
