"""What a job leaves for its next start, and how it asks for one; whole jobs are in tests/distributed."""

import sys
from pathlib import Path

import pytest

from app.slurm import note_checkpoint, noted_checkpoint, requeue_job


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "a.yaml"])
    return monkeypatch


def test_only_the_same_command_of_the_same_job_goes_on_and_only_in_a_later_start(
    job: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note_checkpoint(tmp_path, tmp_path / "last.ckpt")
    assert noted_checkpoint(tmp_path) is None
    job.setenv("SLURM_RESTART_COUNT", "1")
    assert noted_checkpoint(tmp_path) == str(tmp_path / "last.ckpt")
    job.setattr(sys, "argv", ["main.py", "fit", "--config", "b.yaml"])
    assert noted_checkpoint(tmp_path) is None
    job.setenv("SLURM_JOB_ID", "13")
    assert noted_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("exit 0", "job 7_3 is requeued and will go on from there"),
        ("echo no such job >&2; exit 1", "job 7_3 is not requeued, submit it again: scontrol says 'no such job'"),
        (None, "job 7_3 is not requeued, submit it again: scontrol cannot be run"),
    ],
)
def test_a_refusal_is_named(job: pytest.MonkeyPatch, tmp_path: Path, script: str | None, line: str) -> None:
    job.setenv("SLURM_ARRAY_JOB_ID", "7")
    job.setenv("SLURM_ARRAY_TASK_ID", "3")
    job.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    assert requeue_job().startswith(line)
