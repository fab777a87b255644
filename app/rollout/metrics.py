"""Metrics of an iteration: sums by name, so that means weigh micro-batches and ranks by what they hold."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from app.rollout.experience import Experience, Rollout
from app.rollout.mismatch import mismatch_metrics

Gather = Callable[[dict[str, Any]], Sequence[dict[str, Any]]]


class MetricSums:
    """Adds up ``value · weight`` and ``weight`` by name; the mean is taken once, over everything and all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._maxima: dict[str, float] = {}
        self._minima: dict[str, float] = {}

    def add(self, name: str, value: torch.Tensor | float, weight: torch.Tensor | float = 1.0) -> None:
        """A scalar mean ``value`` over ``weight`` tokens, rows or updates. Waits for no device."""
        mean, count = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (value, weight))
        pair = torch.stack([torch.where(count > 0, mean * count, 0.0), count + 0 * mean.nan_to_num()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_all(self, values: Mapping[str, torch.Tensor | float], weight: torch.Tensor | float = 1.0) -> None:
        """Several means of the same weight."""
        for name, value in values.items():
            self.add(name, value, weight)

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """The mean over ``values`` (any shape), NaNs left out."""
        known = values[~values.isnan()].double()
        self.add(name, known.mean() if len(known) else 0.0, len(known))

    def extremes(self, values: torch.Tensor, lowest: str | None = None, highest: str | None = None) -> None:
        """Keeps the smallest and the largest of ``values`` on any rank under the names given."""
        if lowest:
            self._minima[lowest] = min(float(values.min()), self._minima.get(lowest, math.inf))
        if highest:
            self._maxima[highest] = max(float(values.max()), self._maxima.get(highest, -math.inf))

    def reduce(self, gather: Gather) -> dict[str, float]:
        """Name → mean, minimum or maximum over all that was added on any rank; a mean over nothing is left out.

        Args:
            gather: takes this rank's dictionary and returns those of all ranks.
        """
        sums = {name: pair.tolist() for name, pair in self._sums.items()}
        ranks = gather({"sums": sums, "minima": self._minima, "maxima": self._maxima})
        found: dict[str, float] = {}
        for name in {name: None for rank in ranks for name in rank["sums"]}:
            pairs = [rank["sums"][name] for rank in ranks if name in rank["sums"]]
            weight = sum(pair[1] for pair in pairs)
            if weight > 0:
                found[name] = sum(pair[0] for pair in pairs) / weight
        for kind, choose in (("minima", min), ("maxima", max)):
            for name in {name: None for rank in ranks for name in rank[kind]}:
                found[name] = choose(rank[kind][name] for rank in ranks if name in rank[kind])
        return found


def record_rollout(sums: MetricSums, rollout: Rollout) -> None:
    """Rewards, lengths, truncation and times of ``rollout``, under the names that people know from TRL."""
    rewards = torch.tensor(rollout.rewards, dtype=torch.float64).view(-1, rollout.group_size)
    sums.add_values("reward", rewards)
    sums.add("completions/unscored", float(rewards.isnan().double().mean()), rewards.numel())
    _record_groups(sums, rewards)
    for name, column in rollout.reward_columns.items():
        sums.add_values(f"rewards/{name}/mean", torch.tensor(column, dtype=torch.float64))
    _record_lengths(sums, rollout)
    sums.add_all({f"time/{name}": seconds for name, seconds in rollout.seconds.items()})
    sums.add_all(rollout.counts)
    sums.add("staleness", float(rollout.batch.iteration - rollout.weights_iteration))


def _record_groups(sums: MetricSums, rewards: torch.Tensor) -> None:
    for group in rewards:
        known = group[~group.isnan()]
        if len(known) < 2:
            continue
        sums.add("reward_std", known.std())
        sums.add("frac_reward_zero_std", float((known == known[0]).all()))


def _record_lengths(sums: MetricSums, rollout: Rollout) -> None:
    lengths = torch.tensor([len(row.token_ids) for row in rollout.rows], dtype=torch.float64)
    sums.add_values("completions/mean_length", lengths)
    sums.extremes(lengths, "completions/min_length", "completions/max_length")
    clipped = torch.tensor([row.finish_reason == "length" for row in rollout.rows], dtype=torch.float64)
    sums.add_values("completions/clipped_ratio", clipped)


def record_experience(experience: Experience) -> None:
    """Adds to the experience's own metrics what its rollout and its log-probs show before the update."""
    sums, mask = experience.metrics, experience.tokens.completion_mask.bool()
    record_rollout(sums, experience.rollout)
    sums.add_values("entropy", experience.entropy[mask])
    found = mismatch_metrics(experience.sampler_log_probs, experience.old_log_probs, mask)
    sums.extremes(found.pop("max"), highest="sampling/sampling_logp_difference/max")
    sums.add("sampling/sampling_logp_difference/mean", found.pop("mean"), mask.sum())
    sums.add_all({f"sampling/{name}": value for name, value in found.items()}, mask.sum())
