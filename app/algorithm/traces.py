"""Eligibility traces over token log-ratios, in O(T) time and memory.

A trace style is a coefficient tr(t, l): how much the token that lies l steps back counts at t. With q = γ·λ,

    recent:  q^l                  the classic accumulating trace
    both:    max(q^l, q^(t−l))    keeps weight on the latest tokens and on the first ones

and M[t, k] = tr(t, t−k) for k ≤ t. No T×T tensor is ever made: products with M are chunked scans, its row and
column sums are closed forms. Source of the traces: Parthasarathi et al., arXiv 2510.00194.

Shapes: B rows, T completion tokens, N chunks of C tokens. Masks are right-padded: ones, then zeros. Annotations name
them, and are checked at every call in the tests.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from torch.nn import functional

from app.errors import require, require_choice

CHUNK = 128
DIRECTIONS = ("backward", "forward", "reverse")

PerToken = Float[Tensor, "B T"]
Exact = Float64[Tensor, "B T"]
Lengths = Float64[Tensor, "B 1"]
Mask = Shaped[Tensor, "B T"]
"""True, or 1 of any dtype, on real tokens."""


def accumulate(log_ratio: PerToken, mask: Mask, q: float, style: str) -> PerToken:
    """z_t = Σ_{k≤t} M[t, k]·ℓ_k, differentiable.

    The scan runs in float64 whatever comes in: ``both`` subtracts long sums, and float64 products are exempt
    from autocast and TF32, which would round log-ratios to three digits.

    Args:
        log_ratio: ℓ [B, T], floating; masked entries may hold anything, NaN included.
        mask: [B, T], true or 1 on real tokens.
        q: γ·λ in [0, 1].
        style: "recent" or "both".

    Returns:
        z [B, T] in ``log_ratio``'s dtype, 0 where masked.

    Raises:
        ConfigurationError: q outside [0, 1] or an unknown style.
    """
    _check(q, style)
    real = mask.bool()
    traces = STYLES[style].accumulate(log_ratio.where(real, 0.0).double(), q)
    return traces.to(log_ratio.dtype).where(real, 0.0)


def weights(mask: Mask, q: float, style: str, direction: str, dtype: torch.dtype = torch.float32) -> PerToken:
    """Row or column sums of M over each row's own length, from closed forms.

    Args:
        mask: [B, T], true or 1 on real tokens.
        q: γ·λ in [0, 1].
        style: "recent" or "both".
        direction: "backward" gives ω_t = Σ_{k≤t} M[t, k]; "forward" gives W_k = Σ_{k≤t<length} M[t, k]; "reverse" gives
            W_(length−1−k), the forward weights from the last token to the first: a control, which hands out as much
            credit to the wrong tokens (and with "recent" is ω).
        dtype: of the result; the sums are computed in float64.

    Returns:
        [B, T], 0 where masked.

    Raises:
        ConfigurationError: q outside [0, 1], or an unknown style or direction.
    """
    _check(q, style)
    require_choice(direction, DIRECTIONS, key="direction")
    real = mask.bool()
    positions = _positions(mask.shape[-1], mask).expand(mask.shape)
    lengths = real.sum(-1, keepdim=True).double()
    if direction == "reverse":
        positions = (lengths - 1 - positions).clamp(min=0)
    if direction == "backward":
        sums = STYLES[style].backward(positions, q)
    else:
        sums = STYLES[style].forward(positions, lengths, q)
    return sums.to(dtype).where(real, 0.0)


def mean_weight(
    mask: Mask, q: float, style: str, direction: str, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " B"]:
    """Each row's mean of :func:`weights` over its real tokens: [B, T] → [B], 0 for an empty row.

    It is how much the trace multiplies the row's policy gradient. The means agree in all directions.
    """
    sums = weights(mask, q, style, direction, torch.float64).sum(-1)
    return (sums / mask.bool().sum(-1).clamp(min=1)).to(dtype)


def decayed_cumsum(values: PerToken, q: float) -> PerToken:
    """y_t = Σ_{k≤t} q^(t−k)·x_k along the last dimension, as a chunked scan: O(T) memory, O(T·CHUNK) time.

    Inside a chunk, a product with a C×C triangle; between chunks, a carry. The carries obey the same
    recursion with q^C in the place of q, so the function calls itself on them.
    """
    length = values.shape[-1]
    if length <= CHUNK:
        return values @ _decay_triangle(length, q, values)
    chunks = functional.pad(values, (0, -length % CHUNK)).unflatten(-1, (-1, CHUNK))  # [B, N, C]
    inside = chunks @ _decay_triangle(CHUNK, q, values)
    leaving = decayed_cumsum(inside[..., -1], q**CHUNK)  # [B, N]
    entering = functional.pad(leaving[..., :-1], (1, 0)).unsqueeze(-1)  # [B, N, 1]
    decay = q ** (_positions(CHUNK, values) + 1)  # [C]
    return (inside + entering * decay).flatten(-2)[..., :length]


def _decay_triangle(size: int, q: float, like: Tensor) -> Float[Tensor, "{size} {size}"]:
    """[k, t] = q^(t−k) for k ≤ t, else 0: the transpose of the recent trace's M."""
    positions = _positions(size, like)
    steps_back = positions - positions.unsqueeze(-1)
    return (q ** steps_back.clamp(min=0)).triu().to(like.dtype)


def _positions(size: int, like: Tensor) -> Float64[Tensor, " {size}"]:
    return torch.arange(size, dtype=torch.float64, device=like.device)


def _accumulate_both(log_ratio: PerToken, q: float) -> PerToken:
    """z_t = Σ_{j<h} q^j ℓ_j + E_t − q^(t−h+1)·E_(h−1), with h = ⌈t/2⌉ and E the recent trace.

    Tokens before h weigh q^k (near the start), the others q^(t−k) (near t); the last term takes out of E_t
    what the tokens before h put into it.
    """
    positions = _positions(log_ratio.shape[-1], log_ratio)
    recent = decayed_cumsum(log_ratio, q)
    from_start = decayed_cumsum(log_ratio * q**positions, 1.0)
    overlap_decay = q ** (positions // 2 + 1)  # t − ⌈t/2⌉ + 1
    return _before_half(from_start) + recent - overlap_decay * _before_half(recent)


def _before_half(sums: PerToken) -> PerToken:
    """s_(⌈t/2⌉−1) for every t, 0 at t = 0: that is 0, s_0, s_0, s_1, s_1, …

    Doubling by an expand rather than by an index keeps the backward pass deterministic on GPUs.
    """
    length = sums.shape[-1]
    doubled = sums[..., : length // 2].unsqueeze(-1).expand(*sums.shape[:-1], -1, 2).flatten(-2)
    return functional.pad(doubled, (1, 0))[..., :length]


def _geometric_sum(count: Exact, q: float) -> Exact:
    """Σ_{j<count} q^j for float64 counts ≥ 0; expm1 keeps (1 − q^n)/(1 − q) exact near q = 1."""
    if q == 1:
        return count
    if q == 0:
        return (count > 0).to(count.dtype)
    return torch.expm1(count * math.log(q)) / (q - 1)


def _backward_recent(positions: Exact, q: float) -> Exact:
    return _geometric_sum(positions + 1, q)


def _forward_recent(positions: Exact, lengths: Lengths, q: float) -> Exact:
    return _geometric_sum((lengths - positions).clamp(min=0), q)


def _backward_both(positions: Exact, q: float) -> Exact:
    """Tokens ⌈t/2⌉ … t weigh q^(t−k), the ⌈t/2⌉ before them q^k."""
    latest = positions // 2 + 1
    return _geometric_sum(latest, q) + _geometric_sum(positions + 1 - latest, q)


def _forward_both(positions: Exact, lengths: Lengths, q: float) -> Exact:
    """Up to t = 2k the token weighs q^(t−k); at every later t it keeps weighing q^k."""
    decaying = torch.minimum(positions + 1, (lengths - positions).clamp(min=0))
    kept = (lengths - 1 - 2 * positions).clamp(min=0)
    return _geometric_sum(decaying, q) + kept * q**positions


@dataclass(frozen=True)
class TraceStyle:
    """Products with M and its row (backward) and column (forward) sums, for one trace coefficient."""

    accumulate: Callable[[PerToken, float], PerToken]
    backward: Callable[[Exact, float], Exact]
    forward: Callable[[Exact, Lengths, float], Exact]


STYLES = {
    "recent": TraceStyle(decayed_cumsum, _backward_recent, _forward_recent),
    "both": TraceStyle(_accumulate_both, _backward_both, _forward_both),
}


def _check(q: float, style: str) -> None:
    require(0 <= q <= 1, "must lie in [0, 1]", q, key="q")
    require_choice(style, STYLES, key="style")
