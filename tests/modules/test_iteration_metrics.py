"""Every curve holds what its iteration has measured, each point once, and on disk before a checkpoint counts it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.rewards.reward import RewardSample, Scores
from callbacks import IterationCheckpoint, TraceLogging
from tests.running import digit_share, fit, make_benchmarks, make_data, make_module, make_rollouts


class Changing:
    """Scores the iterations 0, 2 and 5; iteration 1 is tied, and 3 and 4 cannot be scored.

    Args:
        first: the iteration that the run begins with.
    """

    name = "changing"

    def __init__(self, first: int = 0) -> None:
        self.iteration = first - 1

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        self.iteration += 1
        others: dict[int, Scores] = {1: [1.0] * len(samples), 3: [None] * len(samples), 4: [None] * len(samples)}
        return others.get(self.iteration, digit_share(samples))


class Watch(Callback):
    """The metrics that progress bars and monitors see after each iteration, and one of a user's over the epoch."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(set(trainer.callback_metrics))
        pl_module.log("user/mean_index", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)


def train(folder: Path, *callbacks: Callback, first: int = 0, **changes: Any) -> dict[str, dict[int, float]]:
    """What is in the event files of a run of six iterations: tag → step → value."""
    logger = TensorBoardLogger(str(folder), name="run")
    rollouts = make_rollouts(rewards=[Changing(first)])
    data = make_data(iterations=6, benchmarks=make_benchmarks(2))
    traces = TraceLogging(every_n_iterations=3)
    settings = {"logger": logger, "val_check_interval": 6} | changes
    fit(folder, make_module(), data, [rollouts, traces, *callbacks], **settings)
    return curves(logger.log_dir)


def curves(folder: str) -> dict[str, dict[int, float]]:
    events = EventAccumulator(folder).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "epoch"]  # which Lightning adds whenever it writes
    found = {tag: events.Scalars(tag) for tag in tags}
    assert all(len({each.step for each in points}) == len(points) for points in found.values())  # each point once
    return {tag: {each.step: each.value for each in points} for tag, points in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[int, float]], Watch, Path]:
    folder, watch = tmp_path_factory.mktemp("whole"), Watch()
    keep = IterationCheckpoint(every_n_iterations=2, keep=9, folder=str(folder / "c"))
    return train(folder, watch, keep), watch, folder / "c"


def test_an_iteration_logs_what_it_has_and_nothing_else(whole: Any) -> None:
    found, watch, _ = whole
    expected = {
        "completions/unscored": [0, 1, 2, 3, 4, 5],
        "reward": [0, 1, 2, 5],
        "frac_reward_zero_std": [0, 1, 2, 5],
        "policy/loss": [0, 2, 5],
        "grad_norm": [0, 2, 5],
        "policy/ratio_max": [0, 2, 5],
        "traces/both/effective_horizon": [2, 5],
    }
    assert {tag: list(found[tag]) for tag in expected} == expected
    for iteration, names in enumerate(watch.seen):
        assert [tag for tag in expected if tag in names] == [tag for tag in expected if iteration in expected[tag]]


def test_what_is_averaged_over_the_run_goes_on_adding_up(whole: Any) -> None:
    assert list(whole[0]["user/mean_index"].values()) == [2.5]


def test_a_resumed_run_logs_what_the_uninterrupted_one_does(whole: Any, tmp_path: Path) -> None:
    found, _, saved = whole
    resumed = train(tmp_path, first=4, ckpt_path=saved / "iteration-000004.ckpt")
    clock = ("speed/time/", "per_second", "user/")
    for tag in {*found, *resumed}:
        if not any(part in tag for part in clock):
            assert resumed.get(tag, {}) == {step: value for step, value in found[tag].items() if step >= 4}, tag


class WhatAKillWouldLeave(Checkpoint):
    """Reads the event file right after the checkpoint of an iteration is in its place."""

    def __init__(self) -> None:
        self.left: list[dict[str, dict[int, float]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.left.append(curves(trainer.loggers[0].log_dir))


def test_what_a_checkpoint_counts_is_in_the_event_file_before(tmp_path: Path) -> None:
    keep, kill = IterationCheckpoint(1, monitor="reward", folder=str(tmp_path / "c")), WhatAKillWouldLeave()
    found = train(tmp_path, keep, kill, val_check_interval=1)
    assert keep.best_score == max(found["reward"].values())  # iterations without one pass
    for iteration, left in enumerate(kill.left):
        before = {
            tag: {step: value for step, value in points.items() if step <= iteration} for tag, points in found.items()
        }
        assert left == {tag: points for tag, points in before.items() if points and not tag.startswith("eval/")}
