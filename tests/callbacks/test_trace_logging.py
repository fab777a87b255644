"""Trace metrics against sums written out, and what a run logs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.algorithm.objective import ObjectiveSettings
from app.rollout.metric_sums import MetricSums
from app.rollout.update_plan import UpdateSettings
from callbacks import TraceLogging
from callbacks.trace_logging import record_gradients, record_traces
from tests.running import fit, make_module, make_rollouts, over_ranks


def sums_of(log_ratio: torch.Tensor, mask: torch.Tensor, settings: ObjectiveSettings) -> MetricSums:
    sums = MetricSums()
    record_traces(sums, log_ratio, mask, settings)
    return sums


def recorded(log_ratio: torch.Tensor, mask: torch.Tensor, settings: ObjectiveSettings) -> dict[str, float]:
    return over_ranks(sums_of(log_ratio, mask, settings))


def test_the_numbers_are_those_of_the_sums_written_out() -> None:
    q, mask = 0.9, torch.tensor([[1.0] * 8, [1.0] * 4 + [0.0] * 4])
    log_ratio = torch.linspace(-0.1, 0.1, 16).view(2, 8) * mask
    found = recorded(log_ratio, mask, ObjectiveSettings(lam=q, clip_low=0.1, clip_high=0.2))
    horizons = [sum(q**l for l in range(length)) for length in (8, 4)]  # noqa: E741
    assert found["traces/recent/effective_horizon"] == pytest.approx(sum(horizons) / 2, rel=1e-6)
    z = [[sum(q ** (t - k) * float(log_ratio[b, k]) for k in range(t + 1)) for t in range((8, 4)[b])] for b in (0, 1)]
    flat = torch.tensor([value for row in z for value in row])
    assert found["traces/recent/z_std"] == pytest.approx(float(flat.square().mean().sqrt()), rel=1e-5)
    assert found["traces/recent/z_max"] == pytest.approx(float(flat.abs().max()), rel=1e-5)
    outside = (flat.exp() < 0.9) | (flat.exp() > 1.2)
    assert found["traces/recent/clip_fraction/all"] == pytest.approx(float(outside.double().mean()))
    first_quarters = torch.tensor([*z[0][:2], z[1][0]])
    early = (first_quarters.exp() < 0.9) | (first_quarters.exp() > 1.2)
    assert found["traces/recent/clip_fraction/quarter1"] == pytest.approx(float(early.double().mean()))
    forward = [sum(q ** (t - k) for t in range(k, 8)) for k in (6, 7)] + [1.0]
    assert found["traces/recent/weight/quarter4"] == pytest.approx(sum(forward) / 3, rel=1e-6)


@pytest.mark.parametrize(("application", "weight"), [("none", lambda k: 1), ("weight_forward", lambda k: 8 - k)])
def test_the_gradient_is_shared_as_the_weights_say(application: str, weight: Callable[[int], int]) -> None:
    """At ratios of 1 and q = 1 token k of a row of 8 gets A·(8 − k) under ``weight_forward``."""
    mask, settings = torch.ones(2, 8), ObjectiveSettings(application=application, lam=1.0)
    experience = SimpleNamespace(loss_mask=mask, importance_weights=None)
    held = {"experience": experience, "last_log_ratio": torch.zeros(2, 8), "objective": settings}
    sums = MetricSums()
    record_gradients(sums, SimpleNamespace(**held, last_advantages=torch.tensor([1.0, -2.0]), last_counted=None))  # type: ignore[arg-type]
    found, weights = over_ranks(sums), [weight(k) for k in range(8)]
    name = "grpo" if application == "none" else "weight_forward_recent"
    for count, place in ((2, "first_quarter"), (4, "first_half"), (6, "first_three_quarters")):
        share = sum(weights[:count]) / sum(weights)
        assert found[f"traces/{name}/gradient_share/{place}"] == pytest.approx(share, rel=1e-5)


def test_rows_that_took_no_part_have_no_spread_but_keep_their_weights() -> None:
    mask = torch.ones(2, 4)
    log_ratio = torch.stack([torch.full((4,), 0.3), torch.full((4,), float("nan"))])
    found = recorded(log_ratio, mask, ObjectiveSettings(lam=0.0))
    assert found["traces/none/clip_fraction/all"] == 1
    assert found["traces/none/z_std"] == pytest.approx(0.3)
    silent = recorded(torch.full((2, 4), float("nan")), mask, ObjectiveSettings(lam=0.5))
    assert not any("clip_fraction" in name for name in silent)
    assert silent["traces/both/effective_horizon"] > 0


def test_two_ranks_give_what_one_process_gives() -> None:
    settings = ObjectiveSettings(lam=0.9, clip_low=0.1, clip_high=0.2)
    mask = torch.tensor([[1.0] * 8, [1.0] * 3 + [0.0] * 5])
    log_ratio = torch.stack([torch.full((8,), 0.05), torch.full((8,), -0.5)]) * mask
    ranks = [sums_of(log_ratio[[row]], mask[[row]], settings) for row in (0, 1)]
    assert over_ranks(*ranks) == pytest.approx(recorded(log_ratio, mask, settings), rel=1e-6)


def test_a_rank_on_which_nothing_was_learned_leaves_the_spread_to_the_others() -> None:
    settings, mask = ObjectiveSettings(lam=0.0), torch.ones(1, 4)
    ranks = [sums_of(torch.full((1, 4), value), mask, settings) for value in (0.3, float("nan"))]
    assert over_ranks(*ranks)["traces/none/z_std"] == pytest.approx(0.3)


def test_a_run_logs_every_style_side_by_side(tmp_path: Path) -> None:
    module = make_module({"application": "none"}, updates=UpdateSettings(2))
    trainer = fit(tmp_path, module, None, [make_rollouts(), TraceLogging()])
    for style in ("none", "recent", "both"):
        assert trainer.callback_metrics[f"traces/{style}/z_max"] > 0
    assert trainer.callback_metrics["traces/both/z_max"] >= trainer.callback_metrics["traces/none/z_max"]
