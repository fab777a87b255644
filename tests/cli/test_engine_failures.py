"""What a run leaves behind whose engine cannot be restarted."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.small_run import last_checkpoint, small_run
from tests.command_line import LIMIT_S, ROOT, environment

ENGINE = {"class_path": "tests.cli.failing_engine.FailingEngine", "init_args": {"at_call": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_stop_with_one_line_and_a_checkpoint(tmp_path: Path, strategy: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ranks = ["--config", f"configs/strategy/{strategy}.yaml", "--trainer.devices", "2"]
    command = [*launcher, "main.py", *small_run(tmp_path, ENGINE), *ranks]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert "error: the rollout engine failed again after a restart: for a test" in done.stderr
    assert "callbacks/rollouts.py" not in done.stderr  # no traceback of ours beside that of torchrun
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"
    assert last_checkpoint(tmp_path).is_dir() == (strategy == "fsdp2")
