"""From the rewards of continuations to advantages with their standard errors.

With V(s_j) the expected reward of a completion that goes on from the prefix at cut j, the tokens between two cuts have
the advantage D_j = V(s_(j+1)) − V(s_j): by how much they raised what was to be expected. γ is 1; the D_j of a
completion sum up to its reward minus the prompt's value. The value behind the last token is the reward itself.

V(s_j) is estimated by the mean of fresh continuations, whose variance is estimated without bias by s²/k. Each V serves
two neighbouring differences, once with either sign: their noise is negatively correlated, and nothing here takes them
for independent. What is said of all segments together rests on means of D̂² and of its variance, in which each segment
stands alone, and on resampling whole problems.

Shapes: N segments of M completions. float64 throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from app.credit_audit.drawing import AuditedProblem

QUARTERS = 4
Z = 1.959964
"""Of a two-sided interval of 95 %."""
FALSE_DISCOVERIES = 0.05
"""Share of the distinguished segments that may be there by chance."""


@dataclass(frozen=True)
class Segments:
    """All segments of an audit, one line of every tensor each: problem by problem, completion by completion.

    Attributes:
        problem: [N] int64, index of the problem.
        row: [N] int64, index of the completion among all M.
        start, end: [N] int64, its tokens are those from ``start`` to ``end`` − 1.
        length: [N] int64, tokens of its completion.
        advantage: [N] D̂, unbiased.
        variance: [N] of D̂, unbiased; its root is the standard error.
        low, high: [N] ends of a 95 % interval, see :func:`padded_difference`.
        p_value: [N] of the hypothesis that the true advantage is 0, from the same statistic.
        halves: [N, 2] D̂ from either half of the continuations alone.
    """

    problem: Tensor
    row: Tensor
    start: Tensor
    end: Tensor
    length: Tensor
    advantage: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    p_value: Tensor
    halves: Tensor

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def distinguished(self) -> Tensor:
        """[N] bool: the true advantage is not 0, and its sign is known. So many are chosen that about one in twenty of
        them is chosen by chance (Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995): of intervals that leave 0 out
        there are 5 % also where no token is worth anything, and half of those have the wrong sign."""
        order = self.p_value.argsort()
        bound = FALSE_DISCOVERIES * torch.arange(1, len(self) + 1) / len(self)
        within = (self.p_value[order] <= bound).nonzero()
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[order[: int(within.max()) + 1 if len(within) else 0]] = True
        return chosen

    @property
    def quarter(self) -> Tensor:
        """[N] int64 0 … 3: the quarter of its completion in which the middle of a segment lies."""
        return (self.start + self.end) * QUARTERS // (2 * self.length).clamp(min=1)


class Value(NamedTuple):
    """What is known of a prefix's value.

    Attributes:
        mean: V̂, unbiased.
        variance: of V̂, unbiased; 0 where the value is known.
        halves: V̂ from either half of the rewards.
        rewards: those of the continuations; empty where the value is known.
    """

    mean: float
    variance: float
    halves: tuple[float, float]
    rewards: Sequence[float]


def estimate(rewards: Sequence[float]) -> Value:
    """The value of a prefix whose fresh continuations earned ``rewards``, two at least."""
    values = torch.tensor(rewards, dtype=torch.float64)
    halves = (float(values[::2].mean()), float(values[1::2].mean()))
    return Value(float(values.mean()), float(values.var()) / len(values), halves, rewards)


def known(reward: float) -> Value:
    """The value behind the last token: the reward itself."""
    return Value(reward, 0.0, (reward, reward), ())


def padded_difference(after: Value, before: Value, lowest: float, highest: float) -> tuple[float, float]:
    """Middle and standard error for an interval of V(after) − V(before), of rewards between ``lowest`` and ``highest``.

    A standard error of 0, which k equal rewards have, says nothing of k: so the interval is that of Agresti and Caffo
    (The American Statistician 54, 2000), for any bounded reward: each sample is given one more observation at either
    bound, two where the other value is known.
    """
    extra = 1 if after.rewards and before.rewards else 2
    one, other = (_padded(value, extra * [lowest, highest]) for value in (after, before))
    return one[0] - other[0], (one[1] + other[1]) ** 0.5


def _padded(value: Value, more: list[float]) -> tuple[float, float]:
    """Mean and variance of the mean of the rewards and of ``more``."""
    if not value.rewards:
        return value.mean, 0.0
    values = torch.tensor([*value.rewards, *more], dtype=torch.float64)
    return float(values.mean()), float(values.var(correction=0)) / len(values)


def _p_value(middle: float, error: float) -> float:
    """Two-sided, by the normal distribution; 1 where all rewards are equal."""
    return math.erfc(abs(middle) / (error * 2**0.5)) if error > 0 else float(middle == 0)


def segments_of(problems: Sequence[AuditedProblem]) -> Segments:
    """All segments, in the order of ``problems`` and of their completions."""
    rewards = [reward for problem in problems for row in problem.completions for reward in row.rewards]
    lowest, highest = min(rewards), max(rewards)
    whole, exact, row = [], [], 0
    for index, problem in enumerate(problems):
        for completion in problem.completions:
            length = len(completion.token_ids)
            ends = [*completion.cuts[1:], length]
            values = [*map(estimate, completion.continued), known(completion.reward)]
            for start, end, (before, after) in zip(completion.cuts, ends, pairwise(values), strict=True):
                middle, error = padded_difference(after, before, lowest, highest)
                judged = [middle - Z * error, middle + Z * error, _p_value(middle, error)]
                halves = [one - other for one, other in zip(after.halves, before.halves, strict=True)]
                whole.append([index, row, start, end, length])
                exact.append([after.mean - before.mean, after.variance + before.variance, *judged, *halves])
            row += 1
    integers, numbers = torch.tensor(whole).unbind(1), torch.tensor(exact, dtype=torch.float64)
    columns = [*integers, *numbers[:, :5].unbind(1), numbers[:, 5:]]
    return Segments(*columns)


def segment_means(per_token: Tensor, segments: Segments) -> Tensor:
    """[N] means of a token's value over each segment, from [M, T] values a token."""
    sums = torch.nn.functional.pad(per_token.double().cumsum(1), (1, 0))
    found = sums[segments.row, segments.end] - sums[segments.row, segments.start]
    return found / (segments.end - segments.start)


def token_advantages(segments: Segments, width: int) -> Tensor:
    """[M, width]: each token's D̂, that of its segment; 0 behind a completion's end."""
    counts = segments.end - segments.start
    lengths = torch.zeros(int(segments.row.max()) + 1, dtype=torch.long).index_add_(0, segments.row, counts)
    found = torch.zeros(len(lengths), width, dtype=torch.float64)
    found[torch.arange(width) < lengths[:, None]] = segments.advantage.repeat_interleave(counts)
    return found
