"""Signs that a run no longer learns, or has left what it started from, told from an iteration's metrics."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

from app.errors import require

Metrics = Mapping[str, float]
JUMP, GROWTH = "grad_norm as a multiple of its median", "mismatch as a multiple of its first values"


@dataclass(frozen=True)
class CollapseLimits:
    """Beyond which a run counts as collapsed; null leaves one out.

    Attributes:
        min_entropy: of the policy, in nats a token.
        max_clipped_ratio: the share of completions that ``max_new_tokens`` cuts off.
        max_kl: the estimate of the KL to the reference (β > 0), in nats a token.
        max_approx_kl_old: how far one iteration's update has moved the policy, in nats a token.
        min_reward_spread: the standard deviation of the rewards within a group, mean over the groups that are not tied.
        max_tied_share: the share of groups whose completions all earned the same.
        max_clip_share: the share of tokens whose gradient the clip takes away.
        max_mismatch_growth: the mean difference between the engine's and the trainer's log-probs, as a multiple of what
            it was in the first 10 iterations of the process (or of 0.005 nats, where it was less).
        max_grad_norm_jump: the gradient's norm, as a multiple of its median over up to 50 iterations before.
    """

    min_entropy: float | None = None
    max_clipped_ratio: float | None = None
    max_kl: float | None = None
    max_approx_kl_old: float | None = None
    min_reward_spread: float | None = None
    max_tied_share: float | None = None
    max_clip_share: float | None = None
    max_mismatch_growth: float | None = None
    max_grad_norm_jump: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            fine = value is None or (math.isfinite(value) and value >= 0)
            require(fine, "must be null or at least 0", value, each.name)


WORTH_A_WARNING = CollapseLimits(
    min_entropy=0.01,
    max_clipped_ratio=0.95,
    max_kl=5.0,
    max_approx_kl_old=1.0,
    min_reward_spread=1e-3,
    max_tied_share=0.999,
    max_clip_share=0.5,
    max_mismatch_growth=4.0,
    max_grad_norm_jump=20.0,
)
"""Entropies of working runs lie between 0.05 and 3 nats, a KL to the reference below 1, an update's own below 0.1; a
spread of 1e-3 is ten times the constant that standardised advantages add to it. A difference of 0.02 nats a token, four
times the 0.005, is what bfloat16 engines show."""
EARLY, RECENT = 10, 50
"""Iterations that a value is compared with: a process's first ones, and the last ones."""
LEAST_MISMATCH = 0.005


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
    Sign(
        "max_tied_share",
        lambda metrics: metrics.get("frac_reward_zero_std"),
        "{value:.0%} of the groups are tied: all completions of a prompt earn the same, and nothing is learned from "
        "them. Look at reward: near its end the problems are too hard or too easy, and another data.train, a larger "
        "rollouts.group_size or rollouts.dynamic_sampling helps; else look at the table of completions",
    ),
    Sign(
        "max_clip_share",
        lambda metrics: metrics.get("clip_ratio/region_mean"),
        "the clip takes away the gradient of {value:.0%} of the tokens: most of what was sampled teaches nothing. "
        "Look at traces/<style>/clip_fraction by quarter; a lower model.optimizer.lr, fewer "
        "model.updates.per_rollout, a smaller model.objective.lam or application: weight keep ratios inside",
    ),
    Sign(
        "max_mismatch_growth",
        lambda metrics: metrics.get(GROWTH),
        "the engine's log-probabilities differ from the trainer's {value:.2g} times as much as at first: what it "
        "samples is less and less what the policy would. Look at sampling/ and rollouts/staleness; "
        "rollouts.mismatch.correction or a wider dtype of the engine help",
    ),
    Sign(
        "max_grad_norm_jump",
        lambda metrics: metrics.get(JUMP),
        "the gradient's norm is {value:.3g} times its usual size: the update has left what it was stable at. Look at "
        "policy/ratio_max, policy/approx_kl_old and reward; a lower model.optimizer.lr or a "
        "model.optimizer.max_grad_norm tame it",
    ),
)


class History:
    """What an iteration's values are compared with: those of earlier iterations of this process."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=RECENT)
        self._differences: list[float] = []

    def extend(self, metrics: Metrics) -> Metrics:
        """``metrics`` with :data:`JUMP` and :data:`GROWTH`, once there are enough iterations to compare with."""
        found = dict(metrics)
        norm, difference = metrics.get("grad_norm"), metrics.get("sampling/sampling_logp_difference/mean")
        if norm is not None:
            if len(self._norms) >= EARLY and (usual := statistics.median(self._norms)) > 0:
                found[JUMP] = norm / usual
            self._norms.append(norm)
        if difference is not None:
            if len(self._differences) == EARLY:
                found[GROWTH] = difference / max(statistics.median(self._differences), LEAST_MISMATCH)
            else:
                self._differences.append(difference)
        return found


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
        self._history = History()

    def spoken(self, metrics: Metrics) -> Iterator[str]:
        """What to say after an iteration with these metrics, of each sign once.

        An iteration that lacks a metric says nothing of it, neither for nor against.
        """
        metrics = self._history.extend(metrics)
        for sign in SIGNS:
            value = sign.value(metrics)
            if value is None:
                continue
            self._shown[sign.limit] = self._shown[sign.limit] + 1 if sign.shown(metrics, self.limits) else 0
            if self._shown[sign.limit] >= self.patience and sign.limit not in self._spoken:
                self._spoken.add(sign.limit)
                since = f" for {self.patience} iterations" if self.patience > 1 else ""
                yield f"{sign.words.format(value=value)} ({sign.limit} {getattr(self.limits, sign.limit):g}{since})"
