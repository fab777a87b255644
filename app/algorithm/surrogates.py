"""What is made of ρ and the advantage A: the objective of a token before its weight, to be raised.

Each is a function (log ρ, A, clip) → [B, T]; a new one is one function and one name here.

Shapes: B rows, T completion tokens. Annotations name them, and are checked at every call in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from app.algorithm.ratios import PerToken, ratio_of


@dataclass(frozen=True)
class Clip:
    """How far a ratio may go.

    Attributes:
        low: ε_low in [0, 1].
        high: ε_high ≥ 0.
        dual: c > 1, by which the objective of a negative advantage is bounded; None for no bound.
    """

    low: float
    high: float
    dual: float | None

    def __call__(self, ratio: PerToken) -> PerToken:
        """``ratio`` within [1 − ε_low, 1 + ε_high]."""
        return ratio.clamp(1 - self.low, 1 + self.high)


def _ppo(log_ratio: PerToken, advantages: PerToken, clip: Clip) -> PerToken:
    """min(ρ·A, clip(ρ)·A), and with a dual clip max(that, c·A) where A < 0.

    Source: Schulman et al., arXiv 1707.06347; the dual clip: Ye et al., arXiv 1912.09729.
    """
    ratio = ratio_of(log_ratio)
    lower = torch.minimum(ratio * advantages, clip(ratio) * advantages)
    if clip.dual is None:
        return lower
    return torch.where(advantages < 0, torch.maximum(lower, clip.dual * advantages), lower)


def _cispo(log_ratio: PerToken, advantages: PerToken, clip: Clip) -> PerToken:
    """The gradient of sg(clip(ρ))·A·log ρ: no token's gradient is taken away, its ratio is bounded instead.

    log ρ and log π_θ have the same gradient. The value is clip(ρ)·A, so that it is comparable with "ppo".

    Source: MiniMax-M1, arXiv 2506.13585.
    """
    return clip(ratio_of(log_ratio)).detach() * advantages * (1 + log_ratio - log_ratio.detach())


SURROGATES: dict[str, Callable[[PerToken, PerToken, Clip], PerToken]] = {"ppo": _ppo, "cispo": _cispo}


def clip_shares(surrogate: str, ratio: PerToken, advantages: PerToken, clip: Clip) -> dict[str, Bool[Tensor, "B T"]]:
    """Where the clip acts, under TRL's names: takes the gradient away, or, under "cispo", bounds the ratio."""
    below, above = ratio < 1 - clip.low, ratio > 1 + clip.high
    if surrogate == "ppo":
        below, above = below & (advantages < 0), above & (advantages > 0)
    shares = {"clip_ratio/low_mean": below, "clip_ratio/high_mean": above}
    if clip.dual is not None:
        shares["clip_ratio/dual_mean"] = (ratio > clip.dual) & (advantages < 0)
    return shares | {"clip_ratio/region_mean": torch.stack(list(shares.values())).any(0)}
