"""Estimated advantages against those of a policy whose values are known exactly."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from app.credit_audit.drawing import AuditDraw, AuditedProblem
from app.credit_audit.estimates import (
    Segments,
    estimate,
    known,
    padded_difference,
    segment_means,
    segments_of,
    token_advantages,
)
from app.credit_audit.plan import AuditPlan
from app.engines.engine import SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.rewards.weighted import WeightedRewards
from tests.credit_audit.tabular import END, Tabular, deciding_tabular, prompts, random_tabular
from tests.engines.vllm.support import Owner, word_tokenizer


@dataclass
class Audited:
    """An audit and the truth: [N] advantages of its segments, calculated."""

    tabular: Tabular
    problems: list[AuditedProblem]
    segments: Segments
    true: Tensor


def audit(tabular: Tabular, plan: AuditPlan, every: int, seed: int = 3) -> Audited:
    engine, tokenizer = TransformersEngine(), word_tokenizer()
    owner = Owner(tabular.model, tokenizer)
    engine.start(owner)
    engine.sync(owner)
    sampling = SamplingSettings(max_new_tokens=tabular.limit)
    rewards = WeightedRewards([tabular])
    draw = AuditDraw(plan, sampling, engine.generate, rewards, tokenizer, (END,), seed)
    batch = prompts(plan.problems)
    problems = draw.continue_all(batch, draw.sample(batch), every)
    segments = segments_of(problems)
    return Audited(tabular, problems, segments, true_advantages(tabular, problems))


def true_advantages(tabular: Tabular, problems: list[AuditedProblem]) -> Tensor:
    with torch.no_grad():
        values, found = tabular.values(), []
        for problem in problems:
            for row in problem.completions:
                ends = [*row.cuts, len(row.token_ids)]
                along = [tabular.value(values, problem.prompt_ids, row.token_ids[:end]) for end in ends]
                found += [after - before for before, after in pairwise(along)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(scope="module")
def every_token() -> Audited:
    return audit(random_tabular(), AuditPlan(problems=24, completions=4, continuations=12), every=1)


def test_advantages_agree_with_the_calculated_ones_within_their_stated_errors(every_token: Audited) -> None:
    segments, true = every_token.segments, every_token.true
    assert len(true) == len(segments) > 300
    errors = segments.advantage - true
    # unbiased variances: the mean square of the errors is their mean
    assert float(errors.square().sum() / segments.variance.sum()) == pytest.approx(1, abs=0.25)
    within = (segments.low <= true) & (true <= segments.high)
    assert 0.93 <= float(within.double().mean()) <= 0.995
    chosen = segments.distinguished
    wrong = chosen & (segments.advantage.sign() != true.sign())
    assert int(chosen.sum()) > 30
    assert int(wrong.sum()) <= 0.1 * int(chosen.sum())


def test_the_mean_of_the_errors_is_no_bias(every_token: Audited) -> None:
    """Problem by problem, for segments of one share prefixes and values."""
    errors = every_token.segments.advantage - every_token.true
    sums = torch.zeros(24, dtype=torch.float64).index_add_(0, every_token.segments.problem, errors)
    assert abs(float(sums.mean())) < 3 * float(sums.std()) / 24**0.5


def test_the_noise_of_neighbours_is_negatively_correlated_and_squares_are_corrected_for_it(
    every_token: Audited,
) -> None:
    segments, true = every_token.segments, every_token.true
    errors, same = segments.advantage - true, segments.row[1:] == segments.row[:-1]
    assert float((errors[1:] * errors[:-1])[same].mean()) < -0.2 * float(errors.square().mean())
    corrected = segments.advantage.square() - segments.variance
    assert float(corrected.sum() / true.square().sum()) == pytest.approx(1, abs=0.35)
    assert float(segments.advantage.square().sum() / true.square().sum()) > 1.1


def test_the_segments_of_a_completion_sum_up_to_its_reward_less_the_prompts_value(every_token: Audited) -> None:
    segments, row = every_token.segments, 0
    for problem in every_token.problems:
        start = sum(problem.completions[0].continued[0]) / len(problem.completions[0].continued[0])
        for completion in problem.completions:
            total = float(segments.advantage[segments.row == row].sum())
            assert total == pytest.approx(completion.reward - start, abs=1e-9)
            row += 1


def test_a_prefix_that_completions_share_is_drawn_once_for_all_of_them(every_token: Audited) -> None:
    problem = every_token.problems[0]
    lengths = {len(row.continued[0]) for row in problem.completions}
    assert lengths == {12 * 4}
    for row in problem.completions:
        for cut, rewards in zip(row.cuts, row.continued, strict=True):
            sharing = sum(other.token_ids[:cut] == row.token_ids[:cut] for other in problem.completions)
            # one that has already ended there is no prefix of its own, so that fewer may share it
            assert len(rewards) % 12 == 0
            assert 12 <= len(rewards) <= 12 * sharing


def test_a_token_that_decides_everything_gets_all_the_credit() -> None:
    found = audit(deciding_tabular(), AuditPlan(problems=6, completions=4, continuations=16), every=1)
    segments, rows = found.segments, [row for each in found.problems for row in each.completions]
    decided = 0
    for index, row in enumerate(rows):
        advantages = segments.advantage[segments.row == index].tolist()
        for token, advantage, high in zip(
            row.token_ids, advantages, segments.high[segments.row == index].tolist(), strict=True
        ):
            if token in (6, 7):
                decided += 1
                assert (advantage > 0) == (token == 6)
                assert high > 0 or token == 7
            if token in (8, END):
                assert advantage == 0
    assert decided > 12
    squares = segments.advantage.square() - segments.variance
    tokens = torch.tensor([token for row in rows for token in row.token_ids])
    deciding = (tokens == 6) | (tokens == 7)
    assert float(squares[deciding].sum() / squares.sum()) == pytest.approx(1, abs=0.15)


def test_longer_segments_have_the_sum_of_their_tokens_advantages() -> None:
    found = audit(random_tabular(seed=1), AuditPlan(problems=8, completions=4, continuations=12), every=5)
    errors = found.segments.advantage - found.true
    assert float(errors.square().sum() / found.segments.variance.sum()) == pytest.approx(1, abs=0.6)
    assert set((found.segments.end - found.segments.start).tolist()) <= {1, 2, 3, 4, 5}


def test_intervals_are_agrestis_and_caffos() -> None:
    """Their formula for two proportions, with one success and one failure more in each sample."""
    one, other = estimate([1.0] * 7 + [0.0] * 3), estimate([1.0] * 2 + [0.0] * 8)
    p, q = 8 / 12, 3 / 12
    error = math.sqrt(p * (1 - p) / 12 + q * (1 - q) / 12)
    assert padded_difference(one, other, 0, 1) == pytest.approx((p - q, error))
    middle, error = padded_difference(known(1.0), estimate([1.0] * 4), 0, 1)
    assert 0 < middle < 1.96 * error  # four successes do not show that the value is 1


def test_means_over_segments_and_back(every_token: Audited) -> None:
    few = every_token.problems[:2]
    segments = segments_of(few)
    width = int(segments.length.max())
    wide = token_advantages(segments, width)
    torch.testing.assert_close(segment_means(wide, segments), segments.advantage)
    for row, completion in enumerate(row for problem in few for row in problem.completions):
        assert (wide[row, len(completion.token_ids) :] == 0).all()


def test_what_is_distinguished_is_benjaminis_and_hochbergs_choice(every_token: Audited) -> None:
    segments = every_token.segments
    adjusted = stats.false_discovery_control(segments.p_value.numpy())
    assert segments.distinguished.tolist() == (adjusted <= 0.05).tolist()
