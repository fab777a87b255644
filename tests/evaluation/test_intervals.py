import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluation.intervals import Interval, bootstrap_means, macro_interval, mean_interval, share_interval


def test_agrees_with_the_exact_bootstrap_distribution():
    # every one of the 5^5 equally likely resamples
    values = [0.0, 0.3, 1.0, 1.7, 4.0]
    exact = torch.tensor([sum(draw) / 5 for draw in itertools.product(values, repeat=5)], dtype=torch.float64)
    low, high = torch.quantile(exact, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    found = mean_interval(torch.tensor(values), resamples=40_000)
    assert found.value == pytest.approx(1.4, abs=1e-7)
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    means = bootstrap_means(torch.tensor(values), seed=1, resamples=40_000)
    assert means.mean().item() == pytest.approx(1.4, abs=0.02)
    assert means.std().item() == pytest.approx(exact.std(correction=0).item(), rel=0.02)


def test_agrees_with_the_normal_interval_of_a_proportion():
    correct = torch.arange(500) < 200
    found = mean_interval(correct)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 500)
    assert found.value == 0.4
    assert found.low == pytest.approx(0.4 - half, abs=0.003)
    assert found.high == pytest.approx(0.4 + half, abs=0.003)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.integers(0, 2**62))
def test_stays_within_the_values_and_follows_shift_and_scale(values, seed):
    values_N = torch.tensor(values, dtype=torch.float64)
    found = mean_interval(values_N, seed, resamples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    moved = mean_interval(3 * values_N + 5, seed, resamples=200)
    assert moved == pytest.approx(tuple(3 * each + 5 for each in found), rel=1e-9, abs=1e-9)


def test_is_seeded_and_leaves_the_global_random_state_alone():
    values_N = torch.rand(50, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert mean_interval(values_N, seed=3) == mean_interval(values_N, seed=3)
    assert mean_interval(values_N, seed=3) != mean_interval(values_N, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_in_pieces_has_the_right_number_and_keeps_large_benchmarks_in_bounds():
    means = bootstrap_means(torch.full((300_000,), 0.25), seed=0, resamples=15)
    assert means.tolist() == [0.25] * 15


def test_one_problem_has_no_width_and_none_is_refused():
    assert mean_interval(torch.tensor([0.5])) == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="nothing was evaluated"):
        mean_interval(torch.empty(0))


def chance_of_at_most(right: int, count: int, share: float) -> float:
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right + 1))


@pytest.mark.parametrize("count", [1, 3, 30, 500])
def test_a_share_of_0_or_1_has_the_exact_binomial_end(count):
    """At it, what was seen or less has a chance of 2.5 %."""
    none, all_right = (share_interval(torch.full((count,), value)) for value in (0.0, 1.0))
    assert (none.value, none.low, all_right.value, all_right.high) == (0, 0, 1, 1)
    assert chance_of_at_most(0, count, none.high) == pytest.approx(0.025)
    assert 1 - chance_of_at_most(count - 1, count, all_right.low) == pytest.approx(0.025)
    mixed = torch.tensor([0.0, 0.25, 1.0])
    assert share_interval(mixed) == mean_interval(mixed)


def test_macro_average_draws_benchmarks_independently():
    draws = torch.Generator().manual_seed(0)
    one, other = (torch.rand(400, generator=draws, dtype=torch.float64) for _ in range(2))
    found = macro_interval({"one": one, "other": other})
    assert found.value == pytest.approx((one.mean() + other.mean()).item() / 2)
    # variances of independent means add; drawing the same problems of both would give another width
    error = math.sqrt(one.var(correction=0) / 400 + other.var(correction=0) / 400) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    twice = macro_interval({"a": one, "b": one})
    single = mean_interval(one)
    assert (twice.high - twice.low) / (single.high - single.low) == pytest.approx(math.sqrt(0.5), rel=0.05)


def test_macro_average_weighs_benchmarks_equally():
    values = {"small": torch.ones(2), "large": torch.zeros(98)}
    assert macro_interval(values) == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no benchmarks"):
        macro_interval({})
