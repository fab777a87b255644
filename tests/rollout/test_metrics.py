"""Metrics of a rollout: two ranks log what one process with all their rows does."""

from dataclasses import replace

import pytest
import torch

from app.grading.grader import REASONS
from app.rollout.experience import Rollout
from app.rollout.metric_sums import MetricSums
from app.rollout.metrics import record_rollout
from tests.running import fake_rollout, over_ranks


def recorded(rollout: Rollout) -> MetricSums:
    sums = MetricSums()
    record_rollout(sums, rollout)
    return sums


def test_verdicts_are_shares_of_the_completions_of_all_ranks() -> None:
    """1 timeout in 4 completions of one rank, none in 12 of the other."""
    none = dict.fromkeys(REASONS, 0)
    ranks = [
        replace(fake_rollout([[0.0, 1.0]] * 2, "a"), verdicts=none | {"match": 2, "mismatch": 1, "timeout": 1}),
        replace(fake_rollout([[0.0, 1.0]] * 6, "b"), verdicts=none | {"match": 6, "mismatch": 6}),
    ]
    found = over_ranks(*map(recorded, ranks))
    shares = {name: value for name, value in found.items() if name.startswith("rollouts/verdicts/")}
    expected = dict.fromkeys(REASONS, 0.0) | {"match": 8 / 16, "mismatch": 7 / 16, "timeout": 1 / 16}
    assert shares == pytest.approx({f"rollouts/verdicts/{reason}": share for reason, share in expected.items()})


def test_nothing_added_is_nothing_logged() -> None:
    sums, nothing = MetricSums(), torch.zeros(0)
    sums.add_squares("squares", nothing)
    sums.add_log_weights("weights", nothing)
    sums.add_values("mean", nothing)
    assert over_ranks(sums, MetricSums()) == {}


def test_micro_batches_of_ranks_add_up_to_one_process() -> None:
    values = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = [MetricSums(), MetricSums()]
    for rank, part in ((0, values[:1]), (0, values[1:3]), (1, values[3:])):
        ranks[rank].add_squares("squares", part)
        ranks[rank].add_log_weights("weights", part)
    weights = values.exp()
    size = weights.sum() ** 2 / weights.square().sum() / 7
    expected = {"squares": float(values.square().mean().sqrt()), "weights": float(size)}
    assert over_ranks(*ranks) == pytest.approx(expected)
