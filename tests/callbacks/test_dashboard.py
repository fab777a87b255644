"""The page of a run, read back from its event files by both of TensorBoard's readers, before and after a kill."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from app.algorithm.objective import ObjectiveSettings
from app.cli.run_logger import RunLogger
from app.engines.faults import EngineFailure
from app.errors import ConfigurationError
from app.rollout.update_plan import UpdateSettings
from callbacks import BenchmarkEvaluation, Dashboard, IterationCheckpoint, TraceLogging
from callbacks.dashboard import time_shares
from callbacks.dashboard_layout import PARTS, STACK, rl_layout
from tests.running import fit, make_benchmarks, make_data, make_module, make_rollouts

ITERATIONS, SAVED, KILLED = 6, 2, 4
Curves = dict[str, list[tuple[int, float]]]
SIZES = {"scalars": 0, "tensors": 0, "histograms": 0}


class Kill(Callback):
    """Keeps what lies on the disk at the end of an iteration: what a kill at that moment would leave behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.logger.save()
        if batch_idx == KILLED + 1:  # whose own metrics are not written yet
            shutil.copytree(trainer.log_dir, self.target, symlinks=True)


class Stop(Callback):
    """An error between two iterations, after an evaluation: the checkpoint that is left has seen that one."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == KILLED:
            raise EngineFailure("died", "the cable was pulled")


def learn(root: Path, *further: Callback, resume: Path | None = None) -> Path:
    """The folder of a run of six iterations, two updates each, evaluated every second one."""
    callbacks = [make_rollouts(), Dashboard(3), BenchmarkEvaluation(), TraceLogging(2, 3)]
    keep = IterationCheckpoint(SAVED, keep=9, folder=None)
    logger = RunLogger(root, "run", continued=0 if resume else None)
    module = make_module({"beta": 0.1}, updates=UpdateSettings(per_rollout=2))
    data = make_data(ITERATIONS, benchmarks=make_benchmarks(4))
    often = {"logger": logger, "val_check_interval": 2, "num_sanity_val_steps": -1}
    fit(root, module, data, [*callbacks, *further, keep], resume, **often)
    return Path(logger.log_dir)


@dataclass(frozen=True)
class Runs:
    """The folders of the same run: uninterrupted, gone on with after a kill, and after an error that it survived."""

    whole: Path
    killed: Path
    stopped: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    killed = root / "killed" / "run" / "version_0"
    killed.parent.mkdir(parents=True)
    whole = learn(root / "whole", Kill(killed))
    (checkpoint,) = (killed / "checkpoints").glob(f"iteration-{KILLED:06d}.ckpt")
    left = by_python(killed)
    assert left["reward"][-1][0] == left["eval/heldout/accuracy"][-1][0] == KILLED  # both come once more
    with pytest.raises(EngineFailure):
        learn(root / "stopped", Stop())
    last = root / "stopped" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    return Runs(whole, learn(root / "killed", resume=checkpoint), learn(root / "stopped", resume=last))


def by_python(folder: Path) -> Curves:
    events = EventAccumulator(str(folder), size_guidance=SIZES).Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def by_data_server(folder: Path) -> Curves:
    """What TensorBoard's page is served with, of the run in ``folder``."""
    from tensorboard.context import RequestContext
    from tensorboard.data import server_ingester
    from tensorboard.util.grpc_util import ChannelCredsType

    server = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(folder),
        reload_interval=1,
        channel_creds_type=ChannelCredsType.LOCAL,
    )
    server.start()
    try:
        for _ in range(100):
            found = server.data_provider.read_scalars(
                RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000
            )
            if found:
                (curves,) = found.values()
                return {tag: [(each.step, each.value) for each in points] for tag, points in curves.items()}
            time.sleep(0.05)
    finally:
        server._stdin_handle.close()  # it ends with its standard input
    raise AssertionError("the data server has read nothing")


@pytest.fixture(scope="module")
def events(runs: Runs) -> EventAccumulator:
    return EventAccumulator(str(runs.whole), size_guidance=SIZES).Reload()


CLOCKS = ("speed/time/", "speed/split/", "speed/memory", "speed/tokens/per_second", "by_milliseconds/")


@pytest.mark.parametrize("end", ["killed", "stopped"])
@pytest.mark.parametrize("read", [by_python, by_data_server])
def test_a_resumed_run_is_one_curve_with_each_step_once(runs: Runs, read: Any, end: str) -> None:
    whole, resumed = read(runs.whole), read(getattr(runs, end))
    assert whole.keys() == resumed.keys()
    for tag, points in resumed.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag
        if not tag.startswith("by_milliseconds/"):
            assert steps == [step for step, _ in whole[tag]], tag
        if not tag.startswith(CLOCKS) and "old_pass" not in tag:
            values = torch.tensor([[value for _, value in each] for each in (points, whole[tag])])
            assert torch.allclose(*values, rtol=1e-5, atol=1e-6), tag
    assert [step for step, _ in resumed["reward"]] == list(range(ITERATIONS))
    assert [step for step, _ in resumed["eval/heldout/accuracy"]] == [0, 2, 4, 6]
    assert [step for step, _ in resumed["by_tokens/reward"]] == [value for _, value in resumed["speed/tokens/total"]]


def patterns(layout: Layout) -> Iterator[str]:
    for chart in (chart for category in layout.category for chart in category.chart):
        yield from chart.multiline.tag
        for series in chart.margin.series:
            yield from map(re.escape, (series.value, series.lower, series.upper))


def test_the_layout_has_the_five_categories_and_every_chart_has_a_curve(events: EventAccumulator) -> None:
    (kept,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(kept.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Learning", "Policy", "Traces", "Rollouts", "Speed"]
    assert events.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name == "custom_scalars"
    tags = events.Tags()["scalars"]
    rare = {"rollouts/verdicts/.*$", "rollouts/dynamic_sampling/.*$"}  # of runs with a grader, and with the key
    empty = {each for each in patterns(layout) if not any(re.match(each, tag) for tag in tags)}
    assert empty <= rare
    kinds = {tag.split("/")[0] for tag in tags}
    peers = {"clip_ratio", "completions", "entropy", "frac_reward_zero_std", "grad_norm", "kl", "reward", "reward_std"}
    peers |= {"rewards", "sampling", "eval"}
    assert kinds == peers | {"policy", "traces", "rollouts", "speed", "by_tokens", "by_milliseconds"}


def test_the_variant_in_use_comes_first_and_all_runs_share_their_charts() -> None:
    def charts(**changes: Any) -> list[str]:
        layout = rl_layout(["a", "b"], ObjectiveSettings(**changes))
        return [chart.SerializeToString() for category in layout.category for chart in category.chart]

    trace, weight = charts(application="trace", style="both"), charts(application="weight", style="recent")
    assert sorted(trace) == sorted(weight) != weight
    titles = [
        chart.title
        for chart in rl_layout([], ObjectiveSettings(application="weight", style="recent")).category[2].chart
    ]
    assert titles[2] == "Gradient on the first 1/4, 1/2, 3/4: weight_recent"


def test_histograms_are_of_the_distributions_that_matter_and_not_of_every_iteration(events: EventAccumulator) -> None:
    names = {"learning/rewards", "learning/advantages", "rollouts/completion_lengths", "policy/token_entropies"}
    assert set(events.Tags()["histograms"]) == names | {"policy/log_ratios", "traces/recent/z", "traces/both/z"}
    assert [each.step for each in events.Histograms("learning/rewards")] == [2, 5]
    curves = {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for step, name, tag in (
        (2, "learning/rewards", "reward"),
        (5, "rollouts/completion_lengths", "completions/mean_length"),
    ):
        kept = next(each.histogram_value for each in events.Histograms(name) if each.step == step)
        assert kept.sum / kept.num == pytest.approx(curves[tag][step], rel=1e-5)
    z = next(each.histogram_value for each in events.Histograms("traces/both/z") if each.step == 5)
    assert (z.sum_squares / z.num) ** 0.5 == pytest.approx(curves["traces/both/z_std"][5], rel=1e-4)


def test_settings_stand_beside_the_last_values_of_real_curves(events: EventAccumulator) -> None:
    def content(name: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content)

    settings = content("session_start_info").session_start_info.hparams
    assert settings["lam"].number_value == ObjectiveSettings().lam
    assert settings["application"].string_value == "trace"
    assert settings["clamp_negative"].string_value == "none"
    assert settings["group_size"].number_value == 4
    shown = [each.name for each in content("experiment").experiment.hparam_infos if each.differs]
    assert sorted(shown) == ["application", "lam", "lr", "seed", "style"]
    metrics = [each.name.tag for each in content("experiment").experiment.metric_infos]
    assert metrics[0] == "eval/heldout/accuracy"
    assert set(metrics) - {"final/reward"} <= set(events.Tags()["scalars"])
    assert "hp_metric" not in events.Tags()["scalars"]


def test_shares_of_the_time_are_stacked_and_end_at_one() -> None:
    seconds = {"iteration": 10.0, "sync": 1.0, "generate": 4.0, "grade": 0.0, "log_probs": 1.0, "train": 2.0}
    found = time_shares(seconds)
    assert list(found) == list(STACK)
    assert list(found.values()) == pytest.approx([0, 0.1, 0.5, 0.5, 0.6, 0.8, 1])
    overlapping = time_shares(seconds | {"iteration": 4.0})
    assert overlapping[STACK[-2]] == overlapping[STACK[-1]] == pytest.approx(1)
    assert len(PARTS) + 1 == len(STACK)


def test_the_interval_is_checked() -> None:
    with pytest.raises(
        ConfigurationError, match=r"dashboard\.histograms_every_n_iterations: must be null or at least 1"
    ):
        Dashboard(0)
