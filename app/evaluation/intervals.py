"""95 % percentile bootstrap intervals over problems.

Problems are what a benchmark samples from, so problems are what is drawn again; a problem's k completions
stay together as its mean. The resamples come from a generator of their own: the global random state is not
touched. At a share of 0 or 1 the bootstrap has no width, for it cannot draw what the benchmark did not show:
:func:`share_interval` then takes the exact binomial end.

Shapes: N problems, R resamples.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from app.seeds import derive_seed

RESAMPLES = 10_000
LEVEL = 0.95
_INDICES_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A mean over problems with the ends of its 95 % bootstrap interval, in the unit of the values."""

    value: float
    low: float
    high: float


def bootstrap_means(values_N: Tensor, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """The means of ``resamples`` draws of N problems with replacement.

    Args:
        values_N: one value a problem, [N]; their order is part of what the result depends on.
        seed: equal seeds and equal N draw the same problems.
        resamples: R.

    Returns:
        [R], float64, on the CPU.

    Raises:
        ValueError: where there is no problem.
    """
    count = len(values_N)
    if count == 0:
        raise ValueError("a score over no problems has no value: nothing was evaluated")
    values_N = values_N.detach().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _INDICES_AT_ONCE // count)
    means = []
    for first in range(0, resamples, rows):
        shape = (min(rows, resamples - first), count)
        means.append(values_N[torch.randint(count, shape, generator=generator)].mean(dim=1))
    return torch.cat(means)


def percentile_interval(value: float, means_R: Tensor) -> Interval:
    """The 2.5th and the 97.5th percentile of resampled means [R], linearly interpolated."""
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(means_R, torch.tensor([tail, 1 - tail], dtype=means_R.dtype)).tolist()
    return Interval(value, low, high)


def mean_interval(values_N: Tensor, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of one value a problem, [N], with its interval; of differences, the paired bootstrap.

    Raises:
        ValueError: where there is no problem.
    """
    means_R = bootstrap_means(values_N, seed, resamples)
    return percentile_interval(values_N.double().mean().item(), means_R)


def share_interval(values_N: Tensor, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """:func:`mean_interval` of shares between 0 and 1, [N].

    Where all are 0 the upper end is the share p at which 2.5 % of benchmarks of N problems would show none,
    (1 − p)^N = 0.025 (Clopper and Pearson, 1934), and the same from above where all are 1.

    Raises:
        ValueError: where there is no problem.
    """
    found = mean_interval(values_N, seed, resamples)
    reach = 1 - ((1 - LEVEL) / 2) ** (1 / len(values_N))
    if found.value == 0:
        return Interval(0.0, 0.0, reach)
    return Interval(1.0, 1 - reach, 1.0) if found.value == 1 else found


def macro_interval(values: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The unweighted mean of the benchmarks' means, problems drawn again within each benchmark on its own.

    Args:
        values: by benchmark's name, one value a problem [N]. The name enters the seed, so that benchmarks of
            equal size are drawn independently.
        seed, resamples: see :func:`bootstrap_means`.

    Raises:
        ValueError: where there is no benchmark, or one without problems.
    """
    if not values:
        raise ValueError("an average over no benchmarks has no value")
    drawn = [
        bootstrap_means(each, derive_seed(seed, "macro average", name), resamples)
        for name, each in sorted(values.items())
    ]
    means = [each.double().mean().item() for each in values.values()]
    return percentile_interval(sum(means) / len(means), torch.stack(drawn).mean(dim=0))
