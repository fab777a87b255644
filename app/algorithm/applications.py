"""Where the trace is applied: what the clip's ratio ρ is, and by what a token's loss is weighed.

Each is a function (ℓ, mask, trace) → (log ρ, weight); a new variant is one function and one name here.

Shapes: B rows, T completion tokens; masks are right-padded. Annotations name them, and are checked at every call in the
tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.algorithm.ratios import PerToken, Real
from app.algorithm.traces import accumulate, mean_weight, weights


@dataclass(frozen=True)
class Trace:
    """What an application needs to know of the settings.

    Attributes:
        q: γ·λ in [0, 1].
        style: "recent" or "both".
        normalise: divide by the row's mean weight.
    """

    q: float
    style: str
    normalise: bool


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


def _terminal(log_ratio: PerToken, mask: Real, trace: Trace) -> tuple[PerToken, PerToken]:
    """q^(length−1−t): the reward is seen at the last token only."""
    steps_left = mask.flip(-1).cumsum(-1, dtype=torch.int64).flip(-1) - 1
    decay = (trace.q ** steps_left.clamp(min=0).double()).to(log_ratio.dtype).where(mask, 0.0)
    return log_ratio, _normalised(decay, mask, trace)


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
    "terminal": _terminal,
}
