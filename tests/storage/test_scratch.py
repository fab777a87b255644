"""Temporary folders and the processes that were killed over them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.storage.scratch import ScratchFolder
from tests.command_line import ROOT, environment

CODE = """
import time
from app.storage.scratch import ScratchFolder
scratch = ScratchFolder("engine")
(scratch.path / "model").mkdir()
print(scratch.path, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    variables = {**environment(), "TMPDIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, living = (Path(str(process.stdout and process.stdout.readline()).strip()) for process in processes)
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait()
        assert (killed / "model").is_dir()
        with ScratchFolder("engine") as own:
            assert own.parent == killed.parent == living.parent
            assert not killed.exists()
            assert (living / "model").is_dir()
        assert not own.exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_folder_that_others_may_write_into_is_not_used(tmp_path: Path) -> None:
    with ScratchFolder("one") as first:
        root = first.parent
    root.chmod(0o777)
    with ScratchFolder("two") as second:
        assert second.parent != root
        assert second.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_is_just_being_made_is_left_alone(tmp_path: Path) -> None:
    with ScratchFolder("one") as first:
        fresh, old = first.parent / "fresh", first.parent / "old"
        for folder in (fresh, old):
            folder.mkdir()
        os.utime(old, (0, 0))
        ScratchFolder("two").close()
        assert (fresh.exists(), old.exists(), first.exists()) == (True, False, True)
