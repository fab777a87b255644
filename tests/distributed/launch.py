"""Starts jobs on one or more ranks and reads what they left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.data.files import PROJECT

LIMIT_S = 500
"""Safety limit of a launch, in seconds: a collective that one rank leaves out hangs for ever."""


def launch(jobs: list[dict[str, Any]], ranks: int, folder: Path) -> None:
    """Runs ``jobs`` by torchrun on ``ranks`` processes."""
    file = folder / f"jobs{ranks}.json"
    file.write_text(json.dumps([{**job, "ranks": ranks} for job in jobs]))
    run_ranks(["-m", "tests.distributed.job", str(file)], ranks)


def run_ranks(arguments: list[str], ranks: int) -> str:
    """What torchrun prints that runs python with ``arguments`` on ``ranks`` processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return run_command([*command, *arguments])


def run_command(command: list[str]) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a rank recorded of the job in ``folder``."""
    return torch.load(folder / f"rank{rank}.pt", weights_only=False)


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    """Without what depends on the clock, or on whether a rollout is its process's first one (which has a preflight)."""
    left_out = ("time", "second", "old_pass_share")
    return {name: value for name, value in metrics.items() if not any(part in name for part in left_out)}
