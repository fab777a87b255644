"""Intervals by drawing whole problems again, and the statistics that can be calculated for many draws at once.

The segments of a problem share its prompt's value, its prefixes and the noise of their estimates; problems share
nothing. So problems are what is drawn again. A draw is given as a weight for each problem: how often it was drawn.

Shapes: N observations, P problems, R draws. float64 throughout.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from app.evaluation.intervals import Interval, percentile_interval

RESAMPLES = 1000
LEAST_SHARE = 0.95
"""Share of draws in which a statistic must be defined for its interval to be given."""
_AT_ONCE = 4_000_000
_DIGITS = 6


def draw_weights(problems: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """[1 + R, P]: how often each problem was drawn; the first line is the audit itself, each problem once.

    The global random state is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(problems, (resamples, problems), generator=generator)
    counts = torch.zeros(resamples, problems, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.cat([torch.ones(1, problems, dtype=torch.float64), counts])


def interval(values: Tensor) -> Interval:
    """The value of [1 + R] statistics, the first of which is the audit's own, and its 95 % percentile interval.

    NaN says that a statistic is not defined: its ends are NaN, too, where that is so in more than 5 % of the draws.
    """
    drawn = values[1:][values[1:].isfinite()]
    if len(drawn) < LEAST_SHARE * (len(values) - 1) or not len(drawn):
        return Interval(float(values[0]), math.nan, math.nan)
    return percentile_interval(float(values[0]), drawn)


def sums(values: Tensor, problem: Tensor, weights: Tensor) -> Tensor:
    """[1 + R]: for each draw the sum of [N] ``values``, by the problems [N] that they belong to."""
    own = torch.zeros(weights.shape[1], dtype=torch.float64).index_add_(0, problem, values.double())
    return weights @ own


def root(values: Tensor) -> Tensor:
    """Square roots, NaN where there is none or it is 0: a length that noise has swallowed."""
    return torch.where(values > 0, values, math.nan).sqrt()


def rank_correlations(several: Sequence[Tensor], other: Tensor, problem: Tensor, weights: Tensor) -> list[Tensor]:
    """Spearman's ρ between each of ``several`` and ``other``, [N] all, for each draw, [1 + R]; ties are at their middle
    rank, and NaN is of values that are constant."""
    groups, against = [_tied(values) for values in several], _tied(other)
    parts: list[list[Tensor]] = [[] for _ in groups]
    # a few draws at a time, so that [draws, N] tensors stay small
    for part in weights.split(max(1, _AT_ONCE // max(1, len(other)))):
        own = part[:, problem]
        ranks = _middle_ranks(against, own)
        for found, group in zip(parts, groups, strict=True):
            found.append(_correlation(_middle_ranks(group, own), ranks, own))
    return [torch.cat(found) for found in parts]


def _tied(values: Tensor) -> Tensor:
    """[N] int64: the place of each value among those that differ; in rounding alone they do not."""
    values = values.double()
    largest = values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.unique((values / largest).round(decimals=_DIGITS), return_inverse=True)[1]


def _middle_ranks(group: Tensor, weights: Tensor) -> Tensor:
    """[R, N] ranks where observation n, of the ``group[n]``-th smallest value, is there ``weights[r, n]`` times."""
    size = torch.zeros(len(weights), int(group.max()) + 1, dtype=torch.float64).index_add_(1, group, weights)
    before = size.cumsum(1) - size
    return (before + (size + 1) / 2)[:, group]


def _correlation(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """[R] Pearson's correlation of [R, N] values."""
    total = weights.sum(1, keepdim=True)
    one, other = (each - (weights * each).sum(1, keepdim=True) / total for each in (one, other))
    products = [(weights * a * b).sum(1) for a, b in ((one, other), (one, one), (other, other))]
    return products[0] / (root(products[1]) * root(products[2]))
