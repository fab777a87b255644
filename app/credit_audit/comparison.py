"""How well the credit that a variant hands out agrees with the audited advantage.

Credit x of a segment is the mean over its tokens of what :func:`app.algorithm.credit.token_credit` says; D̂ is the
segment's advantage with its noise. Continuations are fresh, so that their noise has nothing to do with x:

    Σ x·D̂ estimates Σ x·D, and Σ (D̂² − its estimated variance) estimates Σ D², both without bias.

The cosine between x and D is taken from these. It is not weakened by the noise, which only widens its interval; where
the noise is as large as all that is seen, it has no value (NaN). A rank correlation has no such correction: it is given
as it is seen, beside a ceiling, the one that the true advantages themselves would show in this noise.

Shapes: N segments, P problems, R draws (:mod:`app.credit_audit.resampling`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.credit_audit.estimates import QUARTERS, Segments
from app.credit_audit.resampling import RESAMPLES, draw_weights, interval, rank_correlations, root, sums
from app.evaluation.intervals import Interval

BASE = "grpo"
"""The variant that the others are held against."""
LENGTHS = ("short", "middle", "long")
"""Thirds of the completions."""


@dataclass(frozen=True)
class Agreement:
    """Of one variant with the audit, or of the part of it that lies in one place.

    Attributes:
        cosine: between credit and true advantage, noise taken out.
        cosine_gain: how far it is above that of GRPO, problem by problem.
        cosine_seen: between credit and estimated advantage, noise and all.
        sign_share: share of the segments with a distinguished advantage and with credit whose credit has its sign.
        credit_share: the same with each segment counted by the size of its credit.
        credit: share of the variant's squared credit that lies here.
    """

    cosine: Interval
    cosine_gain: Interval
    cosine_seen: Interval
    sign_share: Interval
    credit_share: Interval
    credit: Interval


@dataclass(frozen=True)
class Place:
    """What there is to be found in a part of the segments.

    Attributes:
        segments: how many.
        distinguished: those whose advantage is distinguished from 0.
        advantage: share of the squared true advantage of all segments that lies here, noise taken out.
        variants: by name.
    """

    segments: int
    distinguished: int
    advantage: Interval
    variants: dict[str, Agreement]


@dataclass(frozen=True)
class Comparison:
    """The whole.

    Attributes:
        everywhere: all segments.
        quarters: by the quarter of the completion that a segment lies in.
        lengths: by the length of its completion, in thirds of the completions.
        rank_correlations: by variant, Spearman's between credit and estimated advantage.
        reliability: 1 − noise: share of Σ D̂² that is not the noise of the estimates.
        rank_ceiling: the rank correlation that the true advantages would show with D̂, from its two halves by
            Spearman's and Brown's formula, an approximation.
    """

    everywhere: Place
    quarters: list[Place]
    lengths: dict[str, Place]
    rank_correlations: dict[str, Interval]
    reliability: Interval
    rank_ceiling: Interval


def compare(
    segments: Segments, credits_by_name: Mapping[str, Tensor], seed: int, resamples: int = RESAMPLES
) -> Comparison:
    """Compares [N] credits of each variant, :data:`BASE` among them, with the audited advantages."""
    weights = draw_weights(int(segments.problem.max()) + 1, seed, resamples)
    part = _Part(segments, dict(credits_by_name), weights)
    third = _thirds(segments)
    return Comparison(
        everywhere=part.place(torch.ones(len(segments), dtype=torch.bool)),
        quarters=[part.place(segments.quarter == quarter) for quarter in range(QUARTERS)],
        lengths={name: part.place(third == index) for index, name in enumerate(LENGTHS)},
        rank_correlations=part.rank_correlations(),
        reliability=interval(part.true_squares() / part.sum(segments.advantage.square())),
        rank_ceiling=interval(part.rank_ceiling()),
    )


def _thirds(segments: Segments) -> Tensor:
    """[N] 0 … 2: the third of the completions, by length, to which a segment's belongs. Those of equal length stay
    together, where the middle one of them lies."""
    lengths, counts = torch.unique(segments.length[segments.start == 0], return_counts=True)
    middle = (counts.cumsum(0) - counts / 2) / counts.sum()
    return (len(LENGTHS) * middle).long()[torch.searchsorted(lengths, segments.length)]


@dataclass(frozen=True)
class _Part:
    """All segments, of which :meth:`place` looks at some."""

    segments: Segments
    credits: dict[str, Tensor]
    weights: Tensor

    def sum(self, values: Tensor) -> Tensor:
        return sums(values, self.segments.problem, self.weights)

    def true_squares(self, here: Tensor | None = None) -> Tensor:
        """[1 + R] unbiased Σ D²."""
        squares = self.segments.advantage.square() - self.segments.variance
        return self.sum(squares if here is None else squares * here)

    def rank_ceiling(self) -> Tensor:
        """√(2ρ/(1 + ρ)), ρ the rank correlation of the two halves."""
        one, other = self.segments.halves.T
        (found,) = rank_correlations([one], other, self.segments.problem, self.weights)
        return root(2 * found / (1 + found))

    def rank_correlations(self) -> dict[str, Interval]:
        """By variant."""
        given, advantage = list(self.credits.values()), self.segments.advantage
        found = rank_correlations(given, advantage, self.segments.problem, self.weights)
        return dict(zip(self.credits, map(interval, found), strict=True))

    def place(self, here: Tensor) -> Place:
        """The segments where ``here`` is true, [N]."""
        base = self._cosine(BASE, here)
        return Place(
            segments=int(here.sum()),
            distinguished=int((self.segments.distinguished & here).sum()),
            advantage=interval(self.true_squares(here) / self.true_squares()),
            variants={name: self._agreement(name, here, base) for name in self.credits},
        )

    def _agreement(self, name: str, here: Tensor, base: Tensor) -> Agreement:
        credit, advantage = self.credits[name], self.segments.advantage
        cosine, squares = self._cosine(name, here), credit.square()
        seen = self.sum(credit * advantage * here)
        seen = seen / (root(self.sum(squares * here)) * root(self.sum(advantage.square() * here)))
        judged = (self.segments.distinguished & here & (credit != 0)).double()
        met = judged * (credit.sign() == advantage.sign())
        return Agreement(
            cosine=interval(cosine),
            cosine_gain=interval(cosine - base),
            cosine_seen=interval(seen),
            sign_share=interval(self.sum(met) / self.sum(judged)),
            credit_share=interval(self.sum(met * credit.abs()) / self.sum(judged * credit.abs())),
            credit=interval(self.sum(squares * here) / self.sum(squares)),
        )

    def _cosine(self, name: str, here: Tensor) -> Tensor:
        credit = self.credits[name]
        product = self.sum(credit * self.segments.advantage * here)
        return product / (root(self.sum(credit.square() * here)) * root(self.true_squares(here)))
