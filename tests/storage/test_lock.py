"""What killed runs left is cleared, and what living ones hold is not."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from app.storage.lock import LOCK, FolderLock, clear_dead


def left_by_a_kill(root: Path, name: str) -> Path:
    folder = root / name / "checkpoints"
    (root / name / "hf.unfinished").mkdir(parents=True)
    folder.mkdir()
    (folder / LOCK).touch()
    (folder / "iteration-000002.ckpt").write_text("whole")
    (folder / "iteration-000004.ckpt.unfinished").write_text("half")
    return folder


def test_leftovers_of_dead_runs_are_cleared_and_those_of_living_ones_left(tmp_path: Path) -> None:
    dead, living = (left_by_a_kill(tmp_path, name) for name in ("version_0", "version_1"))
    with FolderLock(living):
        cleared = clear_dead(tmp_path.glob("version_*/checkpoints"))
    assert {path.name for path in cleared} == {"iteration-000004.ckpt.unfinished", "hf.unfinished"}
    assert all(tmp_path / "version_0" in path.parents for path in cleared)
    assert sorted(path.name for path in dead.iterdir()) == [LOCK, "iteration-000002.ckpt"]
    assert (living / "iteration-000004.ckpt.unfinished").exists()


def test_where_a_disk_knows_no_locks_runs_go_on_and_nothing_of_others_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    dead = left_by_a_kill(tmp_path, "version_0")
    with FolderLock(tmp_path / "mine") as lock:
        assert not lock.works
    assert clear_dead([dead]) == []


def test_a_lock_waits_as_long_as_it_is_told_to(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(ConfigurationError, match=r"checkpoint\.folder: .* is writing its check"):
        FolderLock(tmp_path, "checkpoint.folder", "its checkpoints", patience_s=0.2).__enter__()
    with FolderLock(tmp_path, patience_s=0.2) as lock:
        assert lock.works
