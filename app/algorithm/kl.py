"""Estimators of KL(π_θ‖π_ref) from r = log π_ref − log π_θ (Schulman, "Approximating KL Divergence").

Each is a function (r, ℓ), with ℓ = log π_θ − log π_old, which "k3_ratio" alone reads.

What is said of their values does not hold for their gradients at fixed samples of π_θ, which is what a loss takes.
"""

from collections.abc import Callable

from app.algorithm.ratios import MAX_LOG_RATIO, Values, ratio_of


def _k1(r: Values, log_ratio: Values) -> Values:
    """−r: unbiased, of high variance, of either sign. Its gradient is noise with mean 0: nothing pulls to π_ref."""
    return -r


def _k2(r: Values, log_ratio: Values) -> Values:
    """r²/2: biased, low variance. Its gradient is that of KL(π_θ‖π_ref), unbiased."""
    return r.square() / 2


def _k3(r: Values, log_ratio: Values) -> Values:
    """GRPO's: :func:`k3`. Its gradient is that of KL(π_ref‖π_θ), unbiased."""
    return k3(r)


def _k3_ratio(r: Values, log_ratio: Values) -> Values:
    """ρ·k3 with the token's own ρ = exp(ℓ), through which the gradient flows, too.

    Over samples of π_old, value and gradient are those of KL(π_θ‖π_ref), unbiased: also after the first update, when k3
    alone is an average over the wrong policy. Source: DeepSeek-V3.2, arXiv 2512.02556 (TRL: use_bias_correction_kl).
    """
    return ratio_of(log_ratio) * k3(r)


def k3(r: Values) -> Values:
    """exp(r) − r − 1: unbiased, low variance, never negative. Held flat past the bound, as the ratios are."""
    bounded = r.clamp(max=MAX_LOG_RATIO)
    return bounded.exp() - bounded - 1


KL_ESTIMATORS: dict[str, Callable[[Values, Values], Values]] = {"k1": _k1, "k2": _k2, "k3": _k3, "k3_ratio": _k3_ratio}
