"""Estimators of KL(π_θ‖π_ref) from r = log π_ref − log π_θ (Schulman, "Approximating KL Divergence").

What is said of their values does not hold for their gradients at fixed samples of π_θ, which is what a loss takes.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from app.algorithm.ratios import MAX_LOG_RATIO

Values = Float[Tensor, "*shape"]


def _k1(log_ratio: Values) -> Values:
    """−r: unbiased, of high variance, of either sign. Its gradient is noise with mean 0: nothing pulls to π_ref."""
    return -log_ratio


def _k2(log_ratio: Values) -> Values:
    """r²/2: biased, low variance. Its gradient is that of KL(π_θ‖π_ref), unbiased."""
    return log_ratio.square() / 2


def k3(log_ratio: Values) -> Values:
    """exp(r) − r − 1: unbiased, low variance, never negative. Its gradient is that of KL(π_ref‖π_θ), unbiased.

    Held flat past the bound, as the ratios are.
    """
    bounded = log_ratio.clamp(max=MAX_LOG_RATIO)
    return bounded.exp() - bounded - 1


KL_ESTIMATORS: dict[str, Callable[[Values], Values]] = {"k1": _k1, "k2": _k2, "k3": k3}
