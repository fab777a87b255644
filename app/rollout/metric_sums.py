"""Sums by name, so that means, root mean squares and sample sizes weigh micro-batches and ranks by what they hold."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Gather = Callable[[dict[str, Any]], Sequence[dict[str, Any]]]
Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class MetricSums:
    """Adds up, by name, what a mean, a root mean square or an effective sample size is made of.

    Each is worked out once, over everything and all ranks: a mean of the ranks' own would be another number.
    """

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in _RESULTS}

    def _merge(self, kind: str, name: str, parts: torch.Tensor, combine: Combine = torch.add) -> None:
        held = self._parts[kind]
        held[name] = combine(held[name], parts) if name in held else parts

    def add(self, name: str, value: torch.Tensor | float, weight: torch.Tensor | float = 1.0) -> None:
        """A scalar mean ``value`` over ``weight`` tokens, rows or updates. Waits for no device."""
        if isinstance(value, int | float) and isinstance(weight, int | float):  # most are, and cost a tenth then
            parts = [value * weight if weight > 0 else 0.0, weight]
            self._merge("mean", name, torch.tensor(parts, dtype=torch.float64))
            return
        mean, count = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (value, weight))
        self._merge(
            "mean", name, torch.stack([torch.where(count > 0, mean * count, 0.0), count + 0 * mean.nan_to_num()])
        )

    def add_all(self, values: Mapping[str, torch.Tensor | float], weight: torch.Tensor | float = 1.0) -> None:
        """Several means of the same weight."""
        for name, value in values.items():
            self.add(name, value, weight)

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """The mean over ``values`` (any shape), NaNs left out."""
        known = values[~values.isnan()].double()
        self.add(name, known.mean() if len(known) else 0.0, len(known))

    def add_squares(self, name: str, values: torch.Tensor) -> None:
        """The root mean square of ``values`` (any shape). Waits for no device."""
        squares = values.detach().double().square()
        self._merge("root_mean_square", name, torch.stack([squares.sum(), torch.ones_like(squares).sum()]))

    def add_log_weights(self, name: str, log_weights: torch.Tensor) -> None:
        """The effective sample size (Σw)² / (n · Σw²) of weights w = exp(``log_weights``), [n], as a share of n.

        Sums are kept as logs, for weights of long sequences overflow. Waits for no device.
        """
        logs = log_weights.detach().double()
        sums = torch.stack([logs, 2 * logs, torch.zeros_like(logs)]).logsumexp(1)
        self._merge("sample_size", name, sums, torch.logaddexp)

    def extremes(self, values: torch.Tensor, lowest: str | None = None, highest: str | None = None) -> None:
        """Keeps the smallest and the largest of ``values`` on any rank under the names given. Waits for no device."""
        smallest, largest = values.detach().aminmax()
        if lowest:
            self._merge("minimum", lowest, smallest, torch.minimum)
        if highest:
            self._merge("maximum", highest, largest, torch.maximum)

    def reduce(self, gather: Gather) -> dict[str, float]:
        """Name → value over all that was added on any rank; what has no weight is left out.

        Args:
            gather: takes this rank's dictionary and returns those of all ranks.
        """
        own = {kind: {name: parts.tolist() for name, parts in held.items()} for kind, held in self._parts.items()}
        ranks = gather(own)
        found: dict[str, float] = {}
        for kind, result in _RESULTS.items():
            for name in {name: None for rank in ranks for name in rank[kind]}:
                value = result([rank[kind][name] for rank in ranks if name in rank[kind]])
                if value is not None:
                    found[name] = value
        return found


def _mean(ranks: Sequence[Sequence[float]]) -> float | None:
    """Of (Σ value · weight, Σ weight) of each rank."""
    total, weight = map(sum, zip(*ranks, strict=True))
    return total / weight if weight > 0 else None


def _root_mean_square(ranks: Sequence[Sequence[float]]) -> float | None:
    """Of (Σ value², their number) of each rank."""
    mean = _mean(ranks)
    return None if mean is None else math.sqrt(mean)


def _sample_size(ranks: Sequence[Sequence[float]]) -> float | None:
    """Of the logs of (Σw, Σw², their number) of each rank."""
    total, squares, count = torch.tensor(ranks, dtype=torch.float64).logsumexp(0).tolist()
    return math.exp(2 * total - squares - count) if count > -math.inf else None


_RESULTS: dict[str, Callable[[Any], float | None]] = {
    "mean": _mean,
    "root_mean_square": _root_mean_square,
    "sample_size": _sample_size,
    "minimum": min,
    "maximum": max,
}
