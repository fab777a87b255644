"""Whole runs of ``fit`` with vLLM beside the trainer: signals in the middle of a rollout, and generation ahead."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.small_run import last_checkpoint, small_run
from tests.command_line import run, succeed
from tests.distributed.launch import run_ranks

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow
AHEAD = ("--rollouts.schedule.generate_ahead", "true")


def arguments(folder: Path, number: int | None = None, victim: str = "trainer") -> list[str]:
    """A run of four iterations, the third of whose rollouts is disturbed."""
    sent = None if number is None else int(number)
    engine = {"number": sent, "victim": victim, "at_call": 3, "pids": str(folder / "pids")}
    return small_run(folder, {"class_path": "tests.cli.signalled_engine.SignalledEngine", "init_args": engine})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def assert_equal(one: Path, other: Path, atol: float = 0.0) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=atol)


def assert_no_engine_is_left(folder: Path) -> None:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(*arguments(folder))
    assert_no_engine_is_left(folder)
    return folder


@pytest.fixture(scope="module")
def whole_ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the undisturbed run that generates ahead."""
    folder = tmp_path_factory.mktemp("whole-ahead")
    succeed(*arguments(folder), *AHEAD)
    return folder


def stopped(folder: Path, number: signal.Signals, *options: str) -> subprocess.CompletedProcess[str]:
    """A run whose trainer gets a signal in its third rollout; it leaves a checkpoint and no engine."""
    done = run(*arguments(folder, number), *options)
    assert done.returncode == (143 if number == signal.SIGTERM else 1), done.stdout + done.stderr
    assert_no_engine_is_left(folder)
    assert "to go on from there: --ckpt_path" in done.stderr
    assert not (folder / "hf").exists()
    return done


def test_an_engine_killed_in_mid_rollout_changes_nothing_but_the_log(whole: Path, tmp_path: Path) -> None:
    shown = succeed(*arguments(tmp_path, signal.SIGKILL, "engine"))
    assert "The rollout engine failed (died): the engine process ended with code -9 during 'generate'" in shown
    assert_equal(whole, tmp_path)
    assert_no_engine_is_left(tmp_path)


def test_a_run_that_ctrl_c_stopped_in_mid_rollout_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    stopped(tmp_path, signal.SIGINT)
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"
    succeed(*arguments(tmp_path), "--ckpt_path", last_checkpoint(tmp_path))
    assert_equal(whole, tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_ends_a_rollout_at_once_and_not_as_if_the_run_were_complete(tmp_path: Path, ranks: int) -> None:
    """Of two ranks the first one waits for the engine, and the second for the first."""
    options = ("--config", "configs/strategy/fsdp2.yaml", "--trainer.devices", "2") if ranks == 2 else ()
    assert "stopped by SIGTERM" in stopped(tmp_path, signal.SIGTERM, *options).stderr
    assert last_checkpoint(tmp_path).resolve().name == "iteration-000002.ckpt"


def test_a_rollout_ahead_does_not_hold_up_ctrl_c(tmp_path: Path) -> None:
    done = stopped(tmp_path, signal.SIGINT, *AHEAD)
    assert "Restarting it" not in done.stderr
    assert "The rollout that was being generated ahead is given up" in done.stderr


def test_an_engine_killed_while_it_generates_ahead_draws_again_with_newer_weights(
    whole_ahead: Path, tmp_path: Path
) -> None:
    shown = succeed(*arguments(tmp_path, signal.SIGKILL, "engine"), *AHEAD)
    assert shown.count("Restarting it") == 2  # when it happens, and among the warnings in the summary at the end
    assert "is drawn again, with weights that are one update newer" in shown
    assert any(not torch.equal(tensor, weights(tmp_path)[name]) for name, tensor in weights(whole_ahead).items())
    assert_no_engine_is_left(tmp_path)


def evaluation_of_three_problems(folder: Path) -> list[str]:
    """Before the first iteration and after the second; the second of two ranks has none of the problems."""
    source = {"class_path": "SyntheticSource", "init_args": {"split": "heldout", "size": 3}}
    data = {"init_args": {"benchmarks": {"heldout": {"source": source}}, "benchmark_batch_size": 4}}
    sampling = {"temperature": 0, "max_new_tokens": 8}
    settings = {"data": data, "evaluation": {"sampling": sampling}, "trainer": {"val_check_interval": 2}}
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(folder / "evaluation.yaml")]


def test_two_ranks_generate_ahead_what_one_process_does(whole_ahead: Path, tmp_path: Path) -> None:
    """Rank 0 generates for both in a thread, while the backward passes of both exchange gradients.

    Sums run in another order, and Adam divides gradients near zero by their own size.
    """
    ranks = ("--config", "configs/strategy/ddp.yaml", "--trainer.devices", "2")
    run_ranks(["main.py", *arguments(tmp_path), *evaluation_of_three_problems(tmp_path), *AHEAD, *ranks], 2)
    assert_equal(whole_ahead, tmp_path, atol=1e-4)
    samples = tmp_path / "run" / "version_0" / "evaluation" / "iteration-000002" / "samples" / "heldout.jsonl"
    assert len(samples.read_text().splitlines()) == 3
