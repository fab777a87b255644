"""Correlations against scipy, and what noise must not do to them."""

import math
from functools import cache

import pytest
import torch
from scipy import spatial, stats
from torch import Tensor

from app.credit_audit.comparison import Comparison, compare
from app.credit_audit.estimates import Segments
from app.credit_audit.resampling import draw_weights, interval, rank_correlations


def made_up(true: Tensor, noise: float, seed: int, problems: int) -> Segments:
    """N segments of rows of 4, with independent noise of a known size on either half of the continuations."""
    generator = torch.Generator().manual_seed(seed)
    count = len(true)
    halves = true[:, None] + 2**0.5 * noise * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    estimated, place = halves.mean(1), torch.arange(count)
    return Segments(
        problem=place * problems // count,
        row=place // 4,
        start=place % 4 * 5,
        end=place % 4 * 5 + 5,
        length=torch.full((count,), 20),
        advantage=estimated,
        variance=torch.full((count,), noise**2, dtype=torch.float64),
        low=estimated - 1.96 * noise,
        high=estimated + 1.96 * noise,
        p_value=torch.erfc(estimated.abs() / noise / 2**0.5),
        halves=halves,
    )


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def compared(
    noise: float, count: int = 1200, resamples: int = 150
) -> tuple[Tensor, Segments, dict[str, Tensor], Comparison]:
    true = normal(count, 0)
    given = {"grpo": 0.6 * true + 0.8 * normal(count, 1), "perfect": true, "opposite": -3 * true}
    segments = made_up(true, noise, seed=2, problems=60)
    return true, segments, given, compare(segments, given, seed=5, resamples=resamples)


def test_statistics_are_scipys() -> None:
    _, segments, given, found = compared(noise=1.0)
    for name, credit in given.items():
        agreement = found.everywhere.variants[name]
        cosine = 1 - spatial.distance.cosine(credit, segments.advantage)
        assert agreement.cosine_seen.value == pytest.approx(cosine, abs=1e-9)
        expected = stats.spearmanr(credit, segments.advantage).statistic
        assert found.rank_correlations[name].value == pytest.approx(expected, abs=1e-5)  # six digits decide ties


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_ranks_with_ties_in_draws_are_those_of_the_repeated_observations() -> None:
    one = torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 0.0, 5.0])
    other = torch.tensor([2.0, 2.0, 1.0, 1.0, 3.0, 4.0, 4.0, 4.0])
    problem = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    weights = draw_weights(4, seed=0, resamples=20)
    assert (weights.sum(1) == 4).all()
    assert (weights[0] == 1).all()
    (found,) = rank_correlations([one], other, problem, weights)
    for drawn, value in zip(weights, found, strict=True):
        times = drawn[problem].long()
        expected = stats.spearmanr(one.repeat_interleave(times), other.repeat_interleave(times)).statistic
        assert float(value) == pytest.approx(float(expected), abs=1e-9, nan_ok=True)


def test_noise_weakens_what_is_seen_and_not_the_cosine() -> None:
    true, segments, _, found = compared(noise=1.5)
    for name, exact in {"grpo": 0.6, "perfect": 1.0, "opposite": -1.0}.items():
        agreement = found.everywhere.variants[name]
        assert agreement.cosine.value == pytest.approx(exact, abs=0.1)
        assert agreement.cosine.low <= exact <= agreement.cosine.high
        assert abs(agreement.cosine_seen.value) < abs(exact) * 0.75
    assert found.reliability.value == pytest.approx(1 / (1 + 1.5**2), abs=0.05)
    best = stats.spearmanr(true, segments.advantage).statistic
    assert found.rank_ceiling.value == pytest.approx(best, abs=0.05)
    gain = found.everywhere.variants["perfect"].cosine_gain
    assert gain.low > 0.2
    assert found.everywhere.variants["grpo"].cosine_gain.value == 0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(40):
        true = normal(240, seed)
        credit = 0.6 * true + 0.8 * normal(240, 1000 + seed)
        segments = made_up(true, 1.0, seed=2000 + seed, problems=40)
        found = compare(segments, {"grpo": credit}, seed=1, resamples=80).everywhere.variants["grpo"].cosine
        held += found.low <= 0.6 <= found.high
    assert held >= 33


def test_signs_are_judged_where_they_are_known_and_where_there_is_credit() -> None:
    advantage = torch.tensor([1.0, -1.0, 0.1, 1.0] * 5, dtype=torch.float64)
    segments = made_up(advantage, 0.0001, seed=0, problems=5)
    segments = Segments(**(vars(segments) | {"p_value": torch.where(advantage.abs() > 0.5, 0.01, 0.5)}))
    credit = torch.tensor([2.0, 1.0, -5.0, 0.0] * 5, dtype=torch.float64)
    found = compare(segments, {"grpo": credit}, seed=0, resamples=50).everywhere
    assert found.distinguished == 15
    assert found.variants["grpo"].sign_share.value == pytest.approx(1 / 2)
    assert found.variants["grpo"].credit_share.value == pytest.approx(2 / 3)


def test_places_are_quarters_and_thirds_and_their_shares_add_up() -> None:
    _, segments, _, found = compared(noise=0.5, resamples=50)
    assert [place.segments for place in found.quarters] == [300] * 4
    assert sum(place.advantage.value for place in found.quarters) == pytest.approx(1)
    assert sum(place.variants["grpo"].credit.value for place in found.quarters) == pytest.approx(1)
    assert found.lengths["middle"].segments == len(segments)  # all are equally long
    longer = torch.where(segments.row < 60, 20, torch.where(segments.row < 220, 29, 37))
    found = compare(Segments(**(vars(segments) | {"length": longer})), {"grpo": longer.double()}, 0, resamples=10)
    assert [place.segments for place in found.lengths.values()] == [240, 640, 320]


def test_what_is_nothing_but_noise_has_no_value() -> None:
    segments = made_up(torch.zeros(80, dtype=torch.float64), 1.0, seed=1, problems=8)
    segments = Segments(**(vars(segments) | {"variance": torch.full((80,), 5.0, dtype=torch.float64)}))
    found = compare(segments, {"grpo": normal(80, 3), "none": torch.zeros(80, dtype=torch.float64)}, 0, 50)
    assert math.isnan(found.everywhere.variants["grpo"].cosine.value)
    assert math.isnan(found.rank_correlations["none"].value)


def test_an_interval_of_a_statistic_that_is_seldom_defined_is_not_given() -> None:
    values = torch.tensor([0.5] + [0.4] * 90 + [math.nan] * 10, dtype=torch.float64)
    assert math.isnan(interval(values).low)
    values[1:11] = 0.4
    values[91:97] = 0.6
    assert interval(values).low == pytest.approx(0.4)
