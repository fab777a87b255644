"""Intervals and corrections, against closed forms, scipy and hand-worked values."""

import numpy as np
import pytest
import torch
from scipy import stats

from app.report.statistics import holm, interval_of, mean_of, resampled_means

VALUES = torch.tensor([0.12, -0.05, 0.31, 0.08, 0.22, -0.11, 0.17, 0.05, 0.41, 0.02]).double()


def first(means: torch.Tensor) -> torch.Tensor:
    return means[..., 0]


def test_warm_starts_of_one_seed_give_scipys_bootstrap() -> None:
    pairs = [value.reshape(1, 1) for value in VALUES]
    interval, _ = interval_of(pairs, first, seed=1, resamples=40_000)
    scipys = stats.bootstrap(
        (VALUES.numpy(),), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(2)
    )
    assert interval.value == pytest.approx(VALUES.mean().item())
    assert interval.low == pytest.approx(scipys.confidence_interval.low, abs=0.004)
    assert interval.high == pytest.approx(scipys.confidence_interval.high, abs=0.004)


def test_a_single_warm_start_gives_scipys_bootstrap_over_its_seeds() -> None:
    means = resampled_means([VALUES.unsqueeze(-1)], seed=3, resamples=40_000)[:, 0]
    scipys = stats.bootstrap((VALUES.numpy(),), np.mean, n_resamples=40_000, rng=np.random.default_rng(4))
    assert means.std().item() == pytest.approx(scipys.standard_error, rel=0.02)


def test_the_variance_over_both_levels_is_the_closed_form() -> None:
    groups = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(5)).double() + torch.arange(4).reshape(
        4, 1, 1
    )
    means = resampled_means(list(groups), seed=6, resamples=60_000)[:, 0]
    # Var = variance of the warm starts' means / W + mean variance within / (W·S), both with divisor n
    between = groups.mean(1).var(unbiased=False).item() / 4
    within = groups.squeeze(-1).var(1, unbiased=False).mean().item() / (4 * 6)
    assert means.var().item() == pytest.approx(between + within, rel=0.02)
    assert means.mean().item() == pytest.approx(groups.mean().item(), abs=0.02)


def test_warm_starts_with_fewer_seeds_are_not_padded() -> None:
    pairs = [torch.ones(3, 1), torch.full((1, 1), 5.0)]
    means = resampled_means(pairs, seed=7, resamples=4000)[:, 0]
    # both drawn: (3·1 + 5) / 4; the one twice: 1; the other twice: 5
    assert set(means.tolist()) == {1.0, 2.0, 5.0}
    assert (means == 2.0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert mean_of(pairs).item() == 2.0


def test_quantities_of_a_pair_stay_together() -> None:
    base = torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(8)).double() * 10 + 1
    pairs = list(torch.cat([base * 1.25, base], -1))
    difference, _ = interval_of(pairs, lambda m: (m[..., 0] - m[..., 1]) / m[..., 1], seed=9, resamples=2000)
    assert (difference.low, difference.value, difference.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_p_value_counts_the_smaller_side_twice_and_is_never_zero() -> None:
    certain = [torch.ones(2, 1)] * 3
    assert interval_of(certain, first, seed=1, resamples=1999)[1] == pytest.approx(2 / 2000)
    symmetric = [torch.tensor([[-1.0], [1.0]])] * 6
    assert interval_of(symmetric, first, seed=1, resamples=2000)[1] == 1.0


def test_a_p_value_is_the_binomial_share_of_resamples_on_the_other_side() -> None:
    pairs = [torch.tensor([[value]]) for value in (1.0, 1.0, 1.0, 1.0, 1.0, -1.0)]
    # a mean is not above 0 where at least 3 of 6 draws are the negative one, each with probability 1/6
    expected = 2 * stats.binom.sf(2, 6, 1 / 6)
    assert interval_of(pairs, first, seed=2, resamples=40_000)[1] == pytest.approx(expected, abs=0.006)


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and none below the one before it
    given = {"b": 0.01, "d": 0.04, "c": 0.03, "a": 0.005}
    assert holm(given) == pytest.approx({"a": 0.02, "b": 0.03, "c": 0.06, "d": 0.06})
    assert list(holm(given)) == list(given)
    assert holm({"x": 0.4, "y": 0.9}) == pytest.approx({"x": 0.8, "y": 0.9})
    assert holm({"x": 0.7, "y": 0.9}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        resampled_means([], seed=0)
