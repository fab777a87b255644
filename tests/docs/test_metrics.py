"""``docs/metrics.md`` names every curve of a run, and none that there is not."""

import re
from pathlib import Path
from typing import Any

from app.credit_audit.report import audit_metrics
from app.data.sources import SyntheticSource
from app.engines.engine import SamplingSettings
from app.evaluation.metrics import benchmark_metrics
from app.rewards.correctness import CorrectnessReward
from app.rollout.dynamic_sampling import DynamicSamplingSettings
from app.rollout.update_plan import UpdateSettings
from callbacks import TraceLogging
from datamodules import SFTDataModule
from modules import SFTModule
from tests.command_line import ROOT
from tests.credit_audit.test_report import made_up_result
from tests.docs.pages import Page
from tests.running import fit, make_data, make_module, make_rollouts, policy_settings, reward

PAGE = Page(ROOT / "docs" / "metrics.md")
NOT_OURS = {"epoch"}
"""Lightning's."""


def patterns() -> list[str]:
    """The first column's names, with a pattern for each ``<placeholder>``."""
    rows = PAGE.rows("curve", "meaning")
    return [re.sub(r"<\w+>", r"[\\w@]+", name) for row in rows for name in re.findall(r"`([^`]+)`", row[0])]


def logged(folder: Path) -> set[str]:
    """All that runs with every source of curves log: RL with all that is optional, and the supervised stage."""
    rollouts = make_rollouts(
        rewards=[CorrectnessReward(workers=1), reward()],
        dynamic_sampling=DynamicSamplingSettings(1),
        sampling=SamplingSettings(max_new_tokens=6),
    )
    module = make_module({"beta": 0.1, "dual_clip": 3.0, "entropy_bonus": 0.1}, updates=UpdateSettings(per_rollout=2))
    found: set[str] = set()
    trainers: list[Any] = [fit(folder, module, make_data(1, 2), [rollouts, TraceLogging()])]
    examples = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=2, iterations=1)
    trainers.append(fit(folder, SFTModule(policy_settings()), examples))
    for trainer in trainers:
        found |= set(trainer.callback_metrics)
    audited = {*audit_metrics(made_up_result()), "audit/seconds"}
    return (found | audited) - NOT_OURS


def test_every_curve_is_named_and_every_name_is_a_curve(tmp_path: Path) -> None:
    known, found = patterns(), logged(tmp_path)
    unnamed = {name for name in found if not any(re.fullmatch(pattern, name) for pattern in known)}
    assert not unnamed, "docs/metrics.md does not name them"
    absent = {p for p in known if not p.startswith("eval/") and not any(re.fullmatch(p, name) for name in found)}
    assert not absent, "no run logs them"


def test_the_metrics_of_benchmarks_are_explained() -> None:
    page = Page(ROOT / "docs" / "evaluation.md")
    names = {name for row in page.rows("metric", "meaning") for name in re.findall(r"`([^`]+)`", row[0])}
    assert {re.sub(r"@\d+", "@k", name) for name in benchmark_metrics(4, [2])} == names
