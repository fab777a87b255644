"""Signals to runs on two ranks: they stop together, and the runs that go on from there are the uninterrupted one.

Each run of a chain resumes where the one before was stopped, so that it proves both its resumption and its stop.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.small_run import small_run
from tests.command_line import LIMIT_S, ROOT, environment

pytestmark = pytest.mark.slow
PAUSING = "tests.cli.pausing.PausingUpdate"
LAUNCHERS = {
    "lightning": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "slurm": [sys.executable, "-m", "tests.distributed.srun"],
}


class StoppableRun:
    """Seven iterations on two ranks, with an evaluation of three problems before the first and after each second.

    Args:
        folder: of its configuration, checkpoints and export.
        strategy: one of configs/strategy.
        launcher: of LAUNCHERS, that starts the ranks.
    """

    def __init__(self, folder: Path, strategy: str, launcher: str) -> None:
        self.folder, self.pauses, self.launcher = folder, folder / "pauses", launcher
        self.family: list[psutil.Process] = []
        engine = {"class_path": "tests.cli.pausing.PausingEngine", "init_args": {"folder": str(self.pauses)}}
        arguments = small_run(folder, engine)
        source = {"class_path": "SyntheticSource", "init_args": {"split": "heldout", "size": 3}}
        benchmarks = {"heldout": {"source": source}}
        settings = {
            "data": {"init_args": {"iterations": 7, "benchmarks": benchmarks, "benchmark_batch_size": 1}},
            "rollouts": {"sampling": {"max_new_tokens": 20}},
            "evaluation": {"sampling": {"temperature": 0, "max_new_tokens": 8}},
            "checkpoint": {"folder": str(folder / "checkpoints")},
            "trainer": {"devices": 2, "val_check_interval": 2},
        }
        (folder / "ranks.yaml").write_text(yaml.safe_dump(settings))
        files = ["--config", str(folder / "ranks.yaml"), "--config", f"configs/strategy/{strategy}.yaml"]
        self.command = ["main.py", *arguments, *files]

    def rollout(self, call: int) -> list[str]:
        """Options for a pause in a call of the engine, evaluations' included."""
        return ["--rollouts.engine.init_args.at_call", str(call)]

    def update(self, iteration: int) -> list[str]:
        """Options for a pause in an iteration's optimiser step."""
        arguments = {"folder": str(self.pauses), "at_iteration": iteration}
        return ["--trainer.callbacks", json.dumps([{"class_path": PAUSING, "init_args": arguments}])]

    def start(self, *options: str, again: Any = None, **variables: str) -> "subprocess.Popen[str]":
        """A run that goes on from the last checkpoint, if there is one. It leads a process group, as in a terminal.

        Args:
            options: of the command line.
            again: a process whose command is to run once more, to the letter.
            variables: of the environment.
        """
        for file in self.pauses.glob("*"):
            file.unlink()
        self.pauses.mkdir(exist_ok=True)
        resumed = ["--ckpt_path", "last"]
        command = again.args if again else [*LAUNCHERS[self.launcher], *self.command, *resumed, *options]
        self.output = self.folder / "output"
        with self.output.open("w") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment(), **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def paused(self, process: "subprocess.Popen[str]") -> list[int]:
        """The ranks' process ids, once all have paused."""
        files = [self.pauses / f"paused-{rank}" for rank in range(2)]
        while not all(file.exists() for file in files):
            assert process.poll() is None, self.output.read_text()
            time.sleep(0.05)
        self.family = psutil.Process(process.pid).children(recursive=True)
        return [int(file.read_text()) for file in files]

    def end(self, process: "subprocess.Popen[str]") -> int:
        """The exit code of a run that ends by itself and leaves none of its processes."""
        code = process.wait(LIMIT_S)
        assert not psutil.wait_procs(self.family, timeout=10)[1]
        return code

    def saved(self) -> str:
        return (self.folder / "checkpoints" / "last.ckpt").resolve().name

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "hf" / "model.safetensors")

    def evaluations(self) -> dict[str, list[str]]:
        """By iteration, the newest run's samples that were written."""
        files = self.folder.glob("run/version_*/evaluation/*/samples/heldout.jsonl")
        return {file.parts[-3]: sorted(map(_sample, file.read_text().splitlines())) for file in sorted(files)}


def _sample(line: str) -> str:
    row = json.loads(line)
    return json.dumps({name: row[name] for name in row if "second" not in name}, sort_keys=True)


def test_ctrl_c_one_rank_and_a_launcher_that_is_terminated_under_ddp(tmp_path: Path) -> None:
    whole = StoppableRun(tmp_path / "whole", "ddp", "torchrun")
    run = StoppableRun(tmp_path / "stopped", "ddp", "lightning")
    assert whole.end(whole.start()) == 0

    process = run.start(*run.rollout(4))  # two of the evaluation, and the second iteration's
    run.paused(process)
    os.killpg(process.pid, signal.SIGINT)
    assert (run.end(process), run.saved()) == (1, "iteration-000001.ckpt")

    process = run.start(*run.rollout(2))  # the evaluation after the second iteration
    os.kill(run.paused(process)[1], signal.SIGTERM)
    (run.pauses / "go").touch()  # for the other one, which no signal reaches
    assert (run.end(process), run.saved()) == (143, "iteration-000002.ckpt")

    process = run.start(*run.update(4))
    run.paused(process)
    process.terminate()  # the first rank alone, which started the other
    assert (run.end(process), run.saved()) == (143, "iteration-000004.ckpt")

    run.launcher = "torchrun"
    assert run.end(run.start()) == 0
    assert run.evaluations() == whole.evaluations()
    assert_same_weights(run, whole)


def test_torchrun_that_is_terminated_and_a_job_that_slurm_requeues_under_fsdp2(tmp_path: Path) -> None:
    whole, run = (StoppableRun(tmp_path / name, "fsdp2", "torchrun") for name in ("whole", "stopped"))
    assert whole.end(whole.start()) == 0

    process = run.start(*run.update(3))
    run.paused(process)
    process.terminate()  # torchrun itself, whose exit code this is
    assert (run.end(process), run.saved()) == (1, "iteration-000003.ckpt")
    assert "stopped by SIGTERM" in run.output.read_text()

    run.launcher, asked = "slurm", tmp_path / "asked"
    job = {"SLURM_JOB_ID": "4711", "PATH": f"{scontrol(tmp_path, asked)}:{os.environ['PATH']}"}
    process = run.start(*run.rollout(4), **job)  # of the fifth iteration; two were the evaluation's
    run.paused(process)
    process.send_signal(signal.SIGUSR1)
    assert (run.end(process), run.saved()) == (128 + signal.SIGUSR1, "iteration-000004.ckpt")
    assert asked.read_text() == "requeue 4711\n"
    assert "job 4711 is requeued" in run.output.read_text()
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's, from wherever the ranks were

    process = run.start(again=process, **job, SLURM_RESTART_COUNT="1")
    (run.pauses / "go").touch()
    assert run.end(process) == 0
    assert "SLURM has restarted this job: it goes on from" in run.output.read_text()
    assert run.evaluations() == whole.evaluations()
    assert_same_weights(run, whole)


def scontrol(folder: Path, asked: Path) -> Path:
    """A folder with a ``scontrol`` that writes down what it is asked."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    return program.parent


def assert_same_weights(one: StoppableRun, other: StoppableRun) -> None:
    mine, theirs = one.weights(), other.weights()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
