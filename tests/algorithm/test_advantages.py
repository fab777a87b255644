import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.algorithm.advantages import check_advantage_settings, group_advantages
from app.errors import ConfigurationError

NAN = math.nan


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_matches_the_definition_on_numbers(scale: str) -> None:
    groups = [[1.0, 0.0, 0.0, 0.5], [2.0, -1.0, 0.25, 0.0]]
    batch_std = statistics.stdev(groups[0] + groups[1])
    expected = []
    for group in groups:
        divisor = {"std": statistics.stdev(group) + 1e-4, "none": 1.0, "batch": batch_std + 1e-4}[scale]
        expected.append([(reward - statistics.mean(group)) / divisor for reward in group])
    actual = group_advantages(torch.tensor(groups, dtype=torch.float64), scale)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_equals_trl(scale: str) -> None:
    from trl.trainer.utils import nanstd  # imported late: it takes seconds

    rewards = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    rewards[1, 3] = rewards[4, 0] = rewards[4, 5] = NAN
    std = {"std": nanstd(rewards, dim=1).unsqueeze(1), "batch": nanstd(rewards)}.get(scale)
    expected = rewards - rewards.nanmean(1, keepdim=True)
    expected = expected if std is None else expected / (std + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale), expected.nan_to_num(0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.3, 1e6])
def test_a_tied_group_is_exactly_zero(scale: str, value: float) -> None:
    rewards = torch.tensor([[value] * 7, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
    advantages = group_advantages(rewards, scale)
    assert advantages[0].tolist() == [0.0] * 7
    assert (advantages[1] != 0).all()


def test_unscored_completions_are_left_out() -> None:
    with_gap = group_advantages(torch.tensor([[1.0, NAN, 0.0, 0.5]]))
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.5]]))
    assert with_gap[0, 1] == 0.0
    assert torch.equal(with_gap[:, [0, 2, 3]], without)


@pytest.mark.parametrize("row", [[NAN, NAN, NAN], [NAN, 2.0, NAN], [NAN, 2.0, 2.0]])
@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_groups_with_too_few_scores_are_zero(row: list[float], scale: str) -> None:
    assert group_advantages(torch.tensor([row]), scale).tolist() == [[0.0] * 3]


def test_clamp_cuts_negatives_only() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, NAN], [1.0, 1.0, 1.0, 0.0]])
    free, clamped = group_advantages(rewards), group_advantages(rewards, clamp_negative=0.1)
    assert torch.equal(clamped, free.clamp(min=-0.1))
    assert clamped.min() == torch.tensor(-0.1)
    assert clamped[0, 3] == 0.0
    assert group_advantages(rewards, clamp_negative=0).min() == 0.0


def test_integers_are_taken_and_dtype_kept() -> None:
    assert group_advantages(torch.tensor([[1, 0]])).dtype == torch.float32
    assert group_advantages(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": "sdt"}, "scale: unknown name 'sdt'; did you mean 'std'"),
        ({"clamp_negative": -0.1}, "clamp_negative: must be at least 0"),
        ({"clamp_negative": NAN}, "clamp_negative: must be at least 0"),
        ({"rewards": torch.zeros(3, 1)}, "at least 2 completions"),
        ({"rewards": torch.zeros(4)}, "at least 2 completions"),
        ({"rewards": torch.tensor([[0.0, 1.0], [math.inf, 0.0]])}, "prompt 1, completion 0 is infinite"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_refusals_say_what_is_wrong(change: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        group_advantages(**({"rewards": torch.tensor([[0.0, 1.0]])} | change))


def test_settings_can_be_checked_early() -> None:
    check_advantage_settings("batch", 0.1)
    with pytest.raises(ConfigurationError, match="choose one of std, none, batch"):
        check_advantage_settings("variance", None)


rewards_of_groups = st.integers(2, 6).flatmap(
    lambda g: st.lists(
        st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(NAN)), min_size=g, max_size=g),
        min_size=1,
        max_size=4,
    )
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(rewards_of_groups, st.sampled_from(["std", "none", "batch"]), st.randoms(use_true_random=False))
def test_properties(groups: list[list[float]], scale: str, random) -> None:
    rewards = torch.tensor(groups, dtype=torch.float64)
    advantages = group_advantages(rewards, scale)
    assert advantages.isfinite().all()
    assert (advantages[rewards.isnan()] == 0).all()
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(groups), dtype=torch.float64), atol=1e-9, rtol=0)
    order = random.sample(range(rewards.shape[1]), rewards.shape[1])
    torch.testing.assert_close(group_advantages(rewards[:, order], scale), advantages[:, order])
    torch.testing.assert_close(group_advantages(rewards + 5, scale), advantages, rtol=1e-9, atol=1e-9)
