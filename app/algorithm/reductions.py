"""From per-token losses to one number.

Shapes: B rows, T completion tokens. Annotations name them, and are checked at every call in the tests.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from app.algorithm.ratios import PerToken, Real
from app.algorithm.settings import ObjectiveSettings
from app.algorithm.traces import Mask


def normaliser(mask: Mask, settings: ObjectiveSettings) -> Float64[Tensor, ""]:
    """The denominator of these rows, to be summed over the micro-batches and ranks of one optimiser step.

    "sequence": rows; "token": tokens; "constant": rows · max_tokens. A row without tokens counts as a row,
    as in TRL: leave rows that are mere filler out of ``mask``.

    Args:
        mask: [B, T].

    Returns:
        A scalar, float64 so that sums of counts stay exact.
    """
    rows = torch.tensor(float(len(mask)), dtype=torch.float64, device=mask.device)
    if settings.reduction == "token":
        return mask.bool().sum().double()
    return rows * settings.max_tokens if settings.reduction == "constant" else rows


def reduce(
    per_token: PerToken, mask: Real, settings: ObjectiveSettings, denominator: Float[Tensor, ""] | float | None
) -> Float[Tensor, ""]:
    """[B, T] → scalar. Without tokens it is 0 but keeps its graph: every rank can run its backward pass."""
    if denominator is None:
        denominator = normaliser(mask, settings)
    row_sums = per_token.where(mask, 0.0).sum(-1)
    if settings.reduction == "sequence":
        row_sums = row_sums / mask.sum(-1).clamp(min=1)
    return (row_sums.sum() / (denominator + (denominator == 0))).to(row_sums.dtype)  # no tokens: 0 / 1
