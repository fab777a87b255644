"""Intervals and corrections of a report: a hierarchical bootstrap of paired differences, and Holm's procedure.

Shapes: W warm starts, S seeds in each (the largest number of them), K quantities of a pair, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from app.evaluation.intervals import RESAMPLES, Interval, percentile_interval


def resampled_means(pairs: Sequence[Tensor], seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Means of a two-level bootstrap: warm starts are drawn with replacement, and within each drawn one its seeds.

    All K quantities of a pair stay together, so that differences remain paired and ratios can be taken. Source:
    Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.

    Args:
        pairs: for each warm start its pairs [S_w, K], S_w ≥ 1.
        seed: of a generator of its own.
        resamples: R.

    Returns:
        [R, K], float64. A mean is over all drawn pairs, as is the one it is held against.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs or any(len(each) == 0 for each in pairs):
        raise ValueError("a mean over no pairs has no value")
    sizes_W = torch.tensor([len(each) for each in pairs])
    padded_WSK = torch.nn.utils.rnn.pad_sequence([each.double() for each in pairs], batch_first=True)
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(pairs), int(sizes_W.max())
    drawn_RW = torch.randint(count, (resamples, count), generator=generator)
    sizes_RW1 = sizes_W[drawn_RW].unsqueeze(-1)
    uniform_RWS = torch.rand(resamples, count, longest, generator=generator, dtype=torch.float64)
    seeds_RWS = (uniform_RWS * sizes_RW1).long()
    used_RWS1 = (torch.arange(longest) < sizes_RW1).double().unsqueeze(-1)
    values_RWSK = padded_WSK[drawn_RW.unsqueeze(-1), seeds_RWS]
    return (values_RWSK * used_RWS1).sum((1, 2)) / used_RWS1.sum((1, 2))


def mean_of(pairs: Sequence[Tensor]) -> Tensor:
    """The mean over all pairs of all warm starts: [S_w, K] each → [K]."""
    return torch.cat([each.double() for each in pairs]).mean(0)


def interval_of(
    pairs: Sequence[Tensor], form: Callable[[Tensor], Tensor], seed: int, resamples: int = RESAMPLES
) -> tuple[Interval, float]:
    """The 95 % percentile interval of a form of mean quantities, and its p-value.

    Args:
        pairs: see :func:`resampled_means`.
        form: [..., K] → [...], such as a quotient of two means.

    Returns:
        The interval, and the two-sided p-value of the form being 0: twice the smaller share of resamples on one side
        of 0, with the observed sample counted in (Davison and Hinkley, section 4.4), so that it is never 0.
    """
    means_R = form(resampled_means(pairs, seed, resamples))
    interval = percentile_interval(form(mean_of(pairs)).item(), means_R)
    sides = [(means_R <= 0).sum().item(), (means_R >= 0).sum().item()]
    return interval, min(1.0, 2 * (1 + min(sides)) / (resamples + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: p-values that may be compared with a level for the whole family.

    The k-th smallest of m is multiplied by m − k + 1, made no smaller than the one before it, and cut at 1. Source:
    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
