"""``docs/metrics.md`` names every curve of a run, and none that there is not."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.cli.run_logger import RunLogger
from app.credit_audit.report import audit_metrics
from app.data.sources import SyntheticSource
from app.engines.engine import SamplingSettings
from app.evaluation.metrics import benchmark_metrics
from app.rewards.correctness import CorrectnessReward
from app.rollout.dynamic_sampling import DynamicSamplingSettings
from app.rollout.update_plan import UpdateSettings
from callbacks import BenchmarkEvaluation, Dashboard, RunSummary, TraceLogging
from datamodules import SFTDataModule
from modules import SFTModule
from tests.command_line import ROOT
from tests.credit_audit.test_report import made_up_result
from tests.docs.pages import Page
from tests.running import fit, make_benchmarks, make_data, make_module, make_rollouts, policy_settings, reward

PAGE = Page(ROOT / "docs" / "metrics.md")
ROWS = PAGE.rows("curve", "meaning", "unit", "healthy", "otherwise")


def patterns() -> list[str]:
    """The first column's names, with a pattern for each ``<placeholder>``."""
    return [re.sub(r"<\w+>", r"[\\w@]+", name) for row in ROWS for name in re.findall(r"`([^`]+)`", row[0])]


def logged(folder: Path) -> tuple[set[str], set[str]]:
    """The curves and histograms of runs with every source of them: RL with all that is optional, and the supervised
    stage."""
    rollouts = make_rollouts(
        rewards=[CorrectnessReward(workers=1), reward()],
        dynamic_sampling=DynamicSamplingSettings(1),
        sampling=SamplingSettings(max_new_tokens=6),
    )
    module = make_module({"beta": 0.1, "dual_clip": 3.0, "entropy_bonus": 0.1}, updates=UpdateSettings(per_rollout=2))
    data, drawn = make_data(1, 2, benchmarks=make_benchmarks(2)), [Dashboard(1), RunSummary(), TraceLogging(1, 1)]
    often = {"num_sanity_val_steps": -1, "logger": RunLogger(folder, "rl")}
    fit(folder, module, data, [rollouts, BenchmarkEvaluation(), *drawn], **often)
    examples = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=2, iterations=1)
    fit(folder, SFTModule(policy_settings()), examples, [Dashboard()], logger=RunLogger(folder, "sft"))
    kept = [EventAccumulator(str(folder / name / "version_0")).Reload().Tags() for name in ("rl", "sft")]
    audited = {*audit_metrics(made_up_result()), "audit/seconds"}
    curves = {tag for tags in kept for tag in tags["scalars"]} | audited
    return curves, {tag for tags in kept for tag in tags["histograms"]}


def test_every_curve_is_named_and_every_name_is_a_curve(tmp_path: Path) -> None:
    known, (found, histograms) = patterns(), logged(tmp_path)
    rows = PAGE.rows("histogram", "of what")
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    assert {re.sub("recent|both", "<style>", name) for name in histograms} == named
    unnamed = {name for name in found if not any(re.fullmatch(pattern, name) for pattern in known)}
    assert not unnamed, "docs/metrics.md does not name them"
    absent = {p for p in known if not p.startswith("eval/") and not any(re.fullmatch(p, name) for name in found)}
    assert not absent, "no run logs them"


def test_the_metrics_of_benchmarks_are_explained() -> None:
    page = Page(ROOT / "docs" / "evaluation.md")
    names = {name for row in page.rows("metric", "meaning") for name in re.findall(r"`([^`]+)`", row[0])}
    assert {re.sub(r"@\d+", "@k", name) for name in benchmark_metrics(4, [2])} == names
