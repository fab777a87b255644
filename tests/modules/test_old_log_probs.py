"""π_old comes from the first step of the update where that is exact, and from a pass of its own elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.engine import SamplingSettings
from app.policy.optimizers import OptimizerSettings
from app.rollout.mismatch import CorrectionSettings, MismatchSettings
from app.rollout.schedule import ScheduleSettings
from app.rollout.update_plan import UpdatePlan, UpdateSettings
from tests.modules.test_grpo_lambda import Recorder
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts, reward

NO_PREFLIGHT = MismatchSettings(preflight_limit=None)
CORRECTED = MismatchSettings(preflight_limit=None, correction=CorrectionSettings(upper=1.02, level="sequence"))
VARIANTS: dict[str, dict[str, Any]] = {
    "one step": {},
    "two passes": {"updates": UpdateSettings(per_rollout=2)},
    "two mini-batches": {"updates": UpdateSettings(mini_batches=2)},
    "micro-batches": {"micro_batch_size": 3, "updates": UpdateSettings(2, 2)},
    "kl": {"objective": {"beta": 0.1}},
    "tied groups": {"rewards": "half_tied", "micro_batch_size": 3},
    "all tied": {"rewards": "always_one"},
    "correction": {"mismatch": CORRECTED, "updates": UpdateSettings(2)},
    "bonus": {"objective": {"entropy_bonus": 0.01}},
}


def run(folder: Path, variant: dict[str, Any], precision: str = "32-true") -> tuple[Recorder, Any]:
    """Three iterations, whose rollouts are of the first one's weights: corrections have something to do."""
    given = dict(variant)
    score, mismatch = reward(given.pop("rewards", "digit_share")), given.pop("mismatch", NO_PREFLIGHT)
    sampling = SamplingSettings(max_new_tokens=12)
    rollouts = make_rollouts(rewards=[score], mismatch=mismatch, schedule=ScheduleSettings(3), sampling=sampling)
    recorder = Recorder()
    module = make_module(given.pop("objective", None), optimizer=OptimizerSettings(lr=1e-2), **given)
    fit(folder, module, make_data(iterations=3), [rollouts, recorder], precision=precision)
    return recorder, module


def logged(recorder: Recorder) -> list[dict[str, float]]:
    kept = ("policy/updates/old_pass_share", "speed/time/", "speed/tokens/per_second")
    return [{name: value for name, value in row.items() if not name.startswith(kept)} for row in recorder.metrics]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_nothing_differs_but_the_pass(
    tmp_path: Path, variant: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, metrics, log-probs and entropies are those of a run in which every row has a pass of its own."""
    spared, _ = run(tmp_path / "spared", variant, precision)
    monkeypatch.setattr(UpdatePlan, "beforehand", UpdatePlan.passes)
    whole, _ = run(tmp_path / "whole", variant, precision)
    assert logged(spared) == logged(whole)
    for one, other in zip(spared.weights, whole.weights, strict=True):
        assert equal_weights(one, other)
    for one, other in zip(spared.experiences, whole.experiences, strict=True):
        assert torch.equal(one.old_log_probs, other.old_log_probs)
        assert torch.equal(one.entropy, other.entropy)


@pytest.mark.parametrize(
    ("variant", "share"), [("one step", 0.0), ("two passes", 0.0), ("two mini-batches", 0.5), ("all tied", 1.0)]
)
def test_the_share_of_rows_with_a_pass_of_their_own_is_logged(tmp_path: Path, variant: str, share: float) -> None:
    recorder, _ = run(tmp_path, VARIANTS[variant])
    assert [row["policy/updates/old_pass_share"] for row in recorder.metrics] == [share] * 3


def test_the_preflight_has_its_log_probs_beforehand(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tmp_path, make_module(), make_data(iterations=2), [make_rollouts(), recorder])
    assert [row["policy/updates/old_pass_share"] for row in recorder.metrics] == [1.0, 0.0]


def test_the_tokens_of_highest_entropy_are_known_beforehand(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, {"objective": {"top_entropy_share": 0.5}})
    assert recorder.metrics[-1]["policy/updates/old_pass_share"] == 1.0
