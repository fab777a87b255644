"""Signs that a run no longer learns, or has left what it started from, told from an iteration's metrics."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

from app.errors import require

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class CollapseLimits:
    """Beyond which a run counts as collapsed; null leaves one out.

    Attributes:
        min_entropy: of the policy, in nats a token.
        max_clipped_ratio: the share of completions that ``max_new_tokens`` cuts off.
        max_kl: the estimate of the KL to the reference (β > 0), in nats a token.
        max_approx_kl_old: how far one iteration's update has moved the policy, in nats a token.
        min_reward_spread: the standard deviation of the rewards within a group, mean over the groups that are not tied.
    """

    min_entropy: float | None = None
    max_clipped_ratio: float | None = None
    max_kl: float | None = None
    max_approx_kl_old: float | None = None
    min_reward_spread: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            fine = value is None or (math.isfinite(value) and value >= 0)
            require(fine, "must be null or at least 0", value, each.name)


WORTH_A_WARNING = CollapseLimits(
    min_entropy=0.01, max_clipped_ratio=0.95, max_kl=5.0, max_approx_kl_old=1.0, min_reward_spread=1e-3
)
"""Entropies of working runs lie between 0.05 and 3 nats, a KL to the reference below 1, an update's own below 0.1; a
spread of 1e-3 is ten times the constant that standardised advantages add to it."""


@dataclass(frozen=True)
class Sign:
    """One sign of collapse.

    Attributes:
        limit: the field of :class:`CollapseLimits` that bounds it.
        value: from an iteration's metrics; None where they lack it.
        words: what it means and what to look at; ``{value}`` is filled in.
    """

    limit: str
    value: Callable[[Metrics], float | None]
    words: str

    def shown(self, metrics: Metrics, limits: CollapseLimits) -> bool:
        """Whether the value is beyond its limit."""
        limit, value = getattr(limits, self.limit), self.value(metrics)
        if limit is None or value is None:
            return False
        return value < limit if self.limit.startswith("min") else value > limit


def _reward_spread(metrics: Metrics) -> float | None:
    spread, tied = metrics.get("reward_std"), metrics.get("frac_reward_zero_std")
    return None if spread is None or tied is None or tied == 1 else spread / (1 - tied)


SIGNS = (
    Sign(
        "min_entropy",
        lambda metrics: metrics.get("entropy"),
        "the policy's entropy is {value:.2g} nats a token: it writes the same completion over and over, groups come "
        "out tied, and nothing new is tried. Look at frac_reward_zero_std and the table of completions; a higher "
        "rollouts.sampling.temperature, a lower model.optimizer.lr or model.objective.beta above 0 keep it open",
    ),
    Sign(
        "max_clipped_ratio",
        lambda metrics: metrics.get("completions/clipped_ratio"),
        "{value:.0%} of the completions are cut off by rollouts.sampling.max_new_tokens: they never come to an answer. "
        "Look at whether they repeat themselves (the table of completions) or only need more room; "
        "rollouts.truncation.mode says what they teach",
    ),
    Sign(
        "max_kl",
        lambda metrics: metrics.get("kl"),
        "the policy is {value:.3g} nats a token away from the reference: what it writes has little to do with the "
        "model that it was. Look at the table of completions and eval/; a higher model.objective.beta or a lower "
        "model.optimizer.lr hold it",
    ),
    Sign(
        "max_approx_kl_old",
        lambda metrics: metrics.get("policy/approx_kl_old"),
        "one iteration has moved the policy by {value:.3g} nats a token, where 0.1 is much: the update is too large. "
        "Look at grad_norm and policy/ratio_max; a lower model.optimizer.lr, a model.optimizer.max_grad_norm or a "
        "smaller model.updates.per_rollout tame it",
    ),
    Sign(
        "min_reward_spread",
        _reward_spread,
        "the rewards within a group differ by {value:.2g}: beside the 1e-4 that standardised advantages add to the "
        "spread this counts as a tie, and next to nothing is learned. Scale the reward functions up "
        "(rollouts.reward_weights), so that good and bad completions differ by about 1",
    ),
)


class CollapseWatch:
    """Counts for how many iterations in a row each sign has shown.

    Args:
        limits: the bounds.
        patience: iterations in a row after which a sign is spoken of.
    """

    def __init__(self, limits: CollapseLimits, patience: int) -> None:
        self.limits = limits
        self.patience = patience
        self._shown = dict.fromkeys((sign.limit for sign in SIGNS), 0)
        self._spoken: set[str] = set()

    def spoken(self, metrics: Metrics) -> Iterator[str]:
        """What to say after an iteration with these metrics, of each sign once.

        An iteration that lacks a metric says nothing of it, neither for nor against.
        """
        for sign in SIGNS:
            value = sign.value(metrics)
            if value is None:
                continue
            self._shown[sign.limit] = self._shown[sign.limit] + 1 if sign.shown(metrics, self.limits) else 0
            if self._shown[sign.limit] >= self.patience and sign.limit not in self._spoken:
                self._spoken.add(sign.limit)
                since = f" for {self.patience} iterations" if self.patience > 1 else ""
                yield f"{sign.words.format(value=value)} ({sign.limit} {getattr(self.limits, sign.limit):g}{since})"
