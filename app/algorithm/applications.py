"""Where the trace is applied: what the clip's ratio ρ is, and by what a token's loss is weighed.

Each is a function (ℓ, mask, trace) → (log ρ, weight); a new variant is one function and one name here.

Shapes: B rows, T completion tokens; masks are right-padded. Annotations name them, and are checked at every call in the
tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.algorithm.ratios import PerToken, Real, ratio_of
from app.algorithm.traces import accumulate, mean_weight, weights


@dataclass(frozen=True)
class Trace:
    """What an application needs to know of the settings.

    Attributes:
        q: γ·λ in [0, 1].
        style: "recent" or "both".
        normalise: divide by the row's mean weight.
        fipo_clip: how far the weight of "fipo" may be from 1.
    """

    q: float
    style: str
    normalise: bool
    fipo_clip: float


Application = Callable[[PerToken, Real, Trace], tuple[PerToken, PerToken]]


def _none(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """GRPO."""
    return log_ratio, torch.ones_like(log_ratio)


def _trace(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """The paper's ε-trace: gradients reach every past token, and the clip sees the accumulated ratio."""
    traces = accumulate(log_ratio, mask, trace.q, trace.style)
    if not trace.normalise:
        return traces, torch.ones_like(traces)
    # at π_θ = π_old the gradient of token k is multiplied by W_k: its row mean is what the step grows by
    growth = mean_weight(mask, trace.q, trace.style, "forward", log_ratio.dtype).unsqueeze(-1)
    return traces, (1 / growth).where(mask, 0.0)


def _weight(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """The paper's ε-weight, in the reading with the best support: row sums ω of the trace matrix."""
    omega = weights(mask, trace.q, trace.style, "backward", log_ratio.dtype)
    return log_ratio, _normalised(omega, mask, trace)


def _weight_forward(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """Column sums W: the forward view, GAE with every TD error equal to A."""
    forward = weights(mask, trace.q, trace.style, "forward", log_ratio.dtype)
    return log_ratio, _normalised(forward, mask, trace)


def _weight_reverse(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """The forward view's weights reversed in time: a control. It grows as much and credits the wrong tokens."""
    backwards = weights(mask, trace.q, trace.style, "reverse", log_ratio.dtype)
    return log_ratio, _normalised(backwards, mask, trace)


def _terminal(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """q^(length−1−t): the reward is seen at the last token only."""
    steps_left = mask.flip(-1).cumsum(-1, dtype=torch.int64).flip(-1) - 1
    decay = (trace.q ** steps_left.clamp(min=0).double()).to(log_ratio.dtype).where(mask, 0.0)
    return log_ratio, _normalised(decay, mask, trace)


def _fipo(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """sg(clip(exp Σ_{k≥t} q^(k−t)·ℓ_k, 1 − ε, 1 + ε)): the recent trace, run from the last token to the first.

    It weighs a token by what the update has done to those that follow; all weights are 1 while π_θ = π_old. Source: Ma
    et al., arXiv 2603.19835 (their q is 2^(−1/32), ε 0.2), without the filters of large ratios that their code adds.
    """
    future = accumulate(log_ratio.detach().flip(-1), mask.flip(-1), trace.q, "recent").flip(-1)
    return log_ratio, ratio_of(future).clamp(1 - trace.fipo_clip, 1 + trace.fipo_clip)


def _gspo(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """One ratio a row: the geometric mean of its tokens', which the clip takes or leaves as a whole.

    Source: Zheng et al., arXiv 2507.18071.
    """
    mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio).where(mask, 0.0), torch.ones_like(log_ratio)


def _normalised(token_weight: PerToken, mask: Real, trace: Trace) -> PerToken:
    """Divided by the row's mean if so set. A row with a token has a positive mean; in the others all is 0."""
    if not trace.normalise:
        return token_weight
    mean = token_weight.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return (token_weight / mean).where(mask, 0.0)


APPLICATIONS: dict[str, Application] = {
    "none": _none,
    "trace": _trace,
    "weight": _weight,
    "weight_forward": _weight_forward,
    "weight_reverse": _weight_reverse,
    "terminal": _terminal,
    "fipo": _fipo,
    "gspo": _gspo,
}
NOT_NORMALISED = ("fipo", "gspo")
"""Those whose weights are no sums of a trace."""
