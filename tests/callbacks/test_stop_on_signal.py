"""Signals to a run in this process, sent by itself from a known place."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from app.data.sources import SyntheticSource
from app.engines.engine import SamplingSettings
from app.engines.ranks import RolloutRanks
from app.engines.transformers_engine import TransformersEngine
from app.rollout.schedule import ScheduleSettings
from app.stopping import STOP, StopRequested
from callbacks import BenchmarkEvaluation, IterationCheckpoint, StopOnSignal
from datamodules import SFTDataModule
from modules import GRPOLambdaModule, SFTModule
from tests.running import (
    equal_weights,
    fit,
    make_benchmarks,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
    weights_of,
)


@pytest.fixture(autouse=True)
def _handlers_as_they_were() -> Iterator[None]:
    yield
    STOP.stopping = False
    STOP.restore()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class Sender:
    """Sends a signal at its n-th call."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            send()


class SendingEngine(TransformersEngine):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.send = Sender(at)

    def _batches(self, *arguments: Any) -> Any:
        self.send()
        return super()._batches(*arguments)


class SendingModule(GRPOLambdaModule):
    """Sends when log-probs of a rollout are evaluated."""

    send: Callable[[], None]

    def evaluate_tokens(self, *arguments: Any, **named: Any) -> Any:
        self.send()
        return super().evaluate_tokens(*arguments, **named)


class SendingUpdate(Callback):
    def __init__(self, at: int) -> None:
        self.send = Sender(at)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.send()


class Steps(DummyLogger):
    """Keeps (step, reward) of what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[tuple[int, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "reward" in metrics and step is not None:
            self.rewards.append((step, metrics["reward"]))


def run(folder: Path, place: str = "", at: int = 0, resume: Path | None = None) -> tuple[SendingModule, Steps]:
    """Five iterations whose rollouts are drawn two at a time, with an evaluation after each second one."""
    module, logged = make_module(), Steps()
    module.__class__ = SendingModule
    module.send = Sender(at if place == "log-probs" else 0)
    callbacks = [
        StopOnSignal(),
        SendingUpdate(at if place == "update" else 0),
        make_rollouts(engine=SendingEngine(at if place == "engine" else 0), schedule=ScheduleSettings(2)),
        BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=6), grader_workers=1),
        IterationCheckpoint(50, folder=str(folder / "checkpoints")),
    ]
    trainer = make_trainer(folder, callbacks, logger=logged, val_check_interval=2)
    data = make_data(5, benchmarks=make_benchmarks(3))
    with pytest.raises(StopRequested) if place and at < 5 else contextlib.nullcontext():
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module, logged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SendingModule, Steps, set[str]]:
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), evaluations(folder)


def evaluations(folder: Path) -> set[str]:
    return {file.parts[-3] for file in folder.glob("evaluation/*/samples/heldout.jsonl")}


@pytest.mark.parametrize(
    ("place", "at", "done"),
    [
        ("engine", 3, 2),  # the evaluation after the second iteration; the first call is the probe at the start
        ("engine", 4, 2),  # the rollout of the third and fourth
        ("log-probs", 4, 3),  # of the fourth, whose rollout was drawn with the third
        ("update", 4, 4),  # half done: what is due before the next iteration is its evaluation
    ],
)
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    whole: tuple[SendingModule, Steps, set[str]], tmp_path: Path, place: str, at: int, done: int
) -> None:
    _, first = run(tmp_path, place, at)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.resolve().name == f"iteration-{done:06d}.ckpt"
    module, rest = run(tmp_path, resume=last)
    assert equal_weights(weights_of(module), weights_of(whole[0]))
    assert first.rewards + rest.rewards == whole[1].rewards
    assert [step for step, _ in whole[1].rewards] == list(range(5))
    assert evaluations(tmp_path) == whole[2] == {"iteration-000002", "iteration-000004"}


def test_a_signal_in_the_last_update_lets_the_run_end(
    whole: tuple[SendingModule, Steps, set[str]], tmp_path: Path
) -> None:
    module, _ = run(tmp_path, "update", 5)
    assert equal_weights(weights_of(module), weights_of(whole[0]))


def test_supervised_training_stops_between_two_iterations(tmp_path: Path) -> None:
    data = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=4, iterations=3)
    keep = IterationCheckpoint(50, folder=str(tmp_path))
    with pytest.raises(StopRequested):
        fit(tmp_path, SFTModule(policy_settings()), data, [StopOnSignal(), SendingUpdate(2), keep])
    assert keep.last is not None
    assert keep.last.resolve().name == "iteration-000002.ckpt"


# ── signals themselves ──


def install() -> None:
    STOP.install(RolloutRanks(), [], [])


def test_a_signal_waits_for_a_place_where_nothing_is_lost() -> None:
    install()
    STOP.check()
    send()
    with pytest.raises(StopRequested, match="stopped by SIGTERM") as stop:
        STOP.check()
    assert stop.value.exit_code == 143
    send()  # torchrun and schedulers repeat themselves: the run ends in peace
    STOP.check()
    with STOP.interruptible():
        send()


def test_work_without_other_ranks_is_interrupted() -> None:
    install()
    behind: list[str] = []
    with pytest.raises(StopRequested, match="SIGUSR1"), STOP.interruptible():  # noqa: PT012
        send(signal.SIGUSR1)
        behind.append("more work")
    assert not behind


def test_work_in_another_thread_lets_the_main_one_finish() -> None:
    install()
    inside, sent = threading.Event(), threading.Event()

    def work() -> None:
        with STOP.interruptible():
            inside.set()
            sent.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    send()
    sent.set()
    thread.join()
    with pytest.raises(StopRequested):
        STOP.check()


def test_what_was_ignored_stays_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    install()
    send(signal.SIGUSR1)
    STOP.check()
    STOP.restore()
    assert signal.getsignal(signal.SIGTERM) == before[1]
    signal.signal(signal.SIGUSR1, before[0])


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    code = (
        "import os, signal; from app.stopping import STOP; from app.engines.ranks import RolloutRanks\n"
        "STOP.install(RolloutRanks(), [], [])\n"
        "os.kill(os.getpid(), signal.SIGINT); print('first', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT); print('second', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "first\n")
    assert "nothing is lost; Ctrl-C again ends it at once" in done.stderr
