"""Two ranks with an engine that cannot be restarted, and with an engine or a reward that is wrong on one of them."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.killing import MARK, processes_with
from tests.cli.small_run import last_checkpoint, small_run
from tests.command_line import LIMIT_S, ROOT, environment

FAILING = "tests.cli.failing_engine.FailingEngine"
LYING = "tests.cli.failing_engine.LyingEngine"


pytestmark = pytest.mark.slow


def run_two_ranks(
    folder: Path, engine: dict[str, Any], strategy: str, *options: str
) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ranks = ["--config", f"configs/strategy/{strategy}.yaml", "--trainer.devices", "2"]
    command = [*launcher, "main.py", *small_run(folder, engine), *ranks, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert "callbacks/rollouts.py" not in done.stderr  # no traceback of ours beside that of torchrun
    return done


def test_an_engine_that_fails_for_good_stops_two_ranks_with_one_line_and_a_checkpoint(tmp_path: Path) -> None:
    """Sharded here; with whole policies on the ranks, a reward that raises takes the same way out below."""
    short = ("--rollouts.sampling.max_new_tokens", "10")
    done = run_two_ranks(tmp_path, {"class_path": FAILING, "init_args": {"at_call": 3}}, "fsdp2", *short)
    assert "error: the rollout engine failed again after a restart: for a test" in done.stderr
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"
    assert last_checkpoint(tmp_path).is_dir()


def test_a_mismatch_on_one_rank_is_explained_by_all_of_a_sharded_policy(tmp_path: Path) -> None:
    done = run_two_ranks(tmp_path, {"class_path": LYING}, "fsdp2")
    assert done.stderr.count("error: on the first rollout engine and trainer differ by") == 2
    assert done.stderr.count("Likely cause: stale weights. The engine draws all tokens alike") == 2


def with_reward(function: str, *options: str) -> tuple[str, ...]:
    reward = f"[{{class_path: ImportedReward, init_args: {{path: 'tests.cli.failing_engine:{function}'}}}}]"
    return ("--rollouts.rewards", reward, "--rollouts.sampling.max_new_tokens", "10", *options)


def test_a_reward_that_raises_on_one_rank_leaves_a_checkpoint_of_the_last_whole_iteration(tmp_path: Path) -> None:
    options = with_reward("fails_on_the_second_rank")
    done = run_two_ranks(tmp_path, {"class_path": "TransformersEngine"}, "ddp", *options)
    failed = "reward 'fails_on_the_second_rank' failed for problem 'synthetic-train-"
    assert done.stderr.count(f"error: {failed}") == 1
    assert done.stderr.count(f"error: on rank 1: {failed}") == 1
    assert "ValueError: no such column" in done.stderr
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"
    assert last_checkpoint(tmp_path).is_file()


def test_the_rank_that_is_killed_is_named_with_phase_and_checkpoint_in_one_line(tmp_path: Path) -> None:
    options = with_reward("kills_the_second_rank", "--checkpoint.every_n_iterations", "1")
    done = run_two_ranks(tmp_path, {"class_path": "TransformersEngine"}, "ddp", *options)
    lost = "error: rank 1 has ended in the rollout of iteration 3, and the others cannot go on without it; go on from "
    assert f"{lost}the last checkpoint: --ckpt_path {last_checkpoint(tmp_path)}\n" in done.stderr
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"
    before = done.stderr.partition("error: ")[0]
    assert "Traceback" not in before  # torchrun's report follows


def test_a_rank_whose_starter_is_killed_before_they_have_met_does_not_wait_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *small_run(tmp_path, {"class_path": "TransformersEngine"})]
    ranks = ["--config", "configs/strategy/ddp.yaml", "--trainer.devices", "2"]
    mark = f"{tmp_path}"
    with (tmp_path / "output").open("w") as output:
        first = subprocess.Popen(
            [*command, *ranks], cwd=ROOT, env={**environment(), MARK: mark}, stdout=output, stderr=output
        )
        while len(processes_with(mark)) < 2:
            assert first.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
    first.kill()
    first.wait()
    started = time.monotonic()
    while processes_with(mark):
        assert time.monotonic() - started < LIMIT_S, "the second rank waits on"
        time.sleep(0.1)
    said = (tmp_path / "output").read_text()
    assert f"error: rank 1: the process that started it, {first.pid}, has ended\n" in said
