"""Sums by name, so that means weigh micro-batches and ranks by what they hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Gather = Callable[[dict[str, Any]], Sequence[dict[str, Any]]]


class MetricSums:
    """Adds up ``value · weight`` and ``weight`` by name; the mean is taken once, over everything and all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._maxima: dict[str, torch.Tensor] = {}
        self._minima: dict[str, torch.Tensor] = {}

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
        """Keeps the smallest and the largest of ``values`` on any rank under the names given. Waits for no device."""
        smallest, largest = values.detach().aminmax()
        if lowest:
            self._minima[lowest] = smallest.minimum(self._minima.get(lowest, smallest))
        if highest:
            self._maxima[highest] = largest.maximum(self._maxima.get(highest, largest))

    def reduce(self, gather: Gather) -> dict[str, float]:
        """Name → mean, minimum or maximum over all that was added on any rank; a mean over nothing is left out.

        Args:
            gather: takes this rank's dictionary and returns those of all ranks.
        """
        sums = {name: pair.tolist() for name, pair in self._sums.items()}
        minima, maxima = ({name: float(x) for name, x in found.items()} for found in (self._minima, self._maxima))
        ranks = gather({"sums": sums, "minima": minima, "maxima": maxima})
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
