"""How far the engine that sampled and the trainer that learns disagree, and importance weights against it.

Shapes: B rows, T completion tokens. With π the trainer's policy, μ the engine's and d = log π − log μ of a sampled
token, π/μ = exp(d) is its importance ratio and Σ_t d the log-ratio of its sequence.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.errors import ConfigurationError
from app.policy.probe import TOLERANCES
from app.rollout.metric_sums import MetricSums

Mode = Literal["truncated", "masked"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True)
class CorrectionSettings:
    """Importance weights π/μ on the loss.

    Attributes:
        mode: "truncated" caps a ratio at ``upper``; "masked" drops what lies outside [``lower``, ``upper``].
        level: one ratio a "token", or one a "sequence" for all its tokens.
        upper: the largest ratio.
        lower: the smallest ratio; of "masked" alone.
    """

    mode: Mode = "truncated"
    level: Level = "token"
    upper: float = 2.0
    lower: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "mode": (self.mode in ("truncated", "masked"), "must be truncated or masked"),
            "level": (self.level in ("token", "sequence"), "must be token or sequence"),
            "upper": (self.upper >= 1, "must be at least 1: equal policies have ratio 1"),
            "lower": (0 <= self.lower <= 1, "must lie in [0, 1]"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigurationError(
                    f"{rule}, got {getattr(self, name)!r}", key=f"rollouts.mismatch.correction.{name}"
                )
        if self.mode == "truncated" and self.lower > 0:
            raise ConfigurationError("needs mode: masked", key="rollouts.mismatch.correction.lower")


@dataclass(frozen=True)
class MismatchSettings:
    """What is done about the engine's and the trainer's different log-probs.

    Attributes:
        preflight_limit: largest mean difference on the first rollout, in nats a token, above which the run stops and
            names the likely cause; null checks nothing. "auto" is more than rounding does: 0.001 where engine and
            trainer compute in float32 on a CPU, 0.02 in float16 and in float32 on a GPU (TF32), else 0.1; and 0.1 where
            top_p, top_k or min_p make the two differ.
        correction: importance weights against it; null for none.
    """

    preflight_limit: float | Literal["auto"] | None = "auto"
    correction: CorrectionSettings | None = None

    def __post_init__(self) -> None:
        limit = self.preflight_limit
        if isinstance(limit, int | float) and not limit >= 0:
            raise ConfigurationError(
                f"must be at least 0, auto, or null for no check, got {limit}", key="rollouts.mismatch.preflight_limit"
            )

    def limit(self, dtypes: Iterable[torch.dtype], device: str, truncated: bool) -> float | None:
        """The limit of the first rollout's difference, in nats a token.

        Args:
            dtypes: that trainer and engine compute in.
            device: type of the trainer's.
            truncated: whether the engine draws from a narrower distribution.
        """
        if self.preflight_limit != "auto":
            return self.preflight_limit
        if truncated:
            return TOLERANCES[torch.bfloat16]
        coarse = (torch.float16 if dtype == torch.float32 and device != "cpu" else dtype for dtype in dtypes)
        return max(TOLERANCES[dtype] for dtype in coarse)


def log_ratios(sampler_log_probs: Tensor, trainer_log_probs: Tensor, mask: Tensor) -> Tensor:
    """d: [B, T] float32 without gradient, 0 where masked out."""
    difference = trainer_log_probs.detach().float() - sampler_log_probs.detach().float()
    return torch.where(mask.bool(), difference, 0.0)


def record_mismatch(sums: MetricSums, sampler_log_probs: Tensor, trainer_log_probs: Tensor, mask: Tensor) -> None:
    """Adds to ``sums``, under ``sampling/``; each is 0 (ratios and sample sizes: 1) where engine and trainer agree.

    Over tokens: ``sampling_logp_difference/mean`` and ``…/max`` of |d| in nats; ``kl``: k3 estimate of KL(μ‖π), mean of
    exp(d) − d − 1; ``token_ratio``: mean importance ratio; ``token_sample_size``: effective sample size (Σw)² / Σw² of
    the ratios w, as a share of their number. Over sequences: ``sequence_ratio`` and ``sequence_sample_size``.
    """
    mask = mask.bool()
    ratios = log_ratios(sampler_log_probs, trainer_log_probs, mask).double()
    tokens = ratios[mask]
    sequences = ratios.sum(1)[mask.any(1)]
    if not len(tokens):
        raise ValueError("a mismatch needs at least one token")
    sums.extremes(tokens.abs(), highest="sampling/sampling_logp_difference/max")
    sums.add("sampling/sampling_logp_difference/mean", tokens.abs().mean(), len(tokens))
    sums.add("sampling/kl", (tokens.expm1() - tokens).mean(), len(tokens))
    for level, log_weights in (("token", tokens), ("sequence", sequences)):
        sums.add(f"sampling/{level}_ratio", log_weights.exp().mean(), len(log_weights))
        sums.add_log_weights(f"sampling/{level}_sample_size", log_weights)


def importance_weights(
    sampler_log_probs: Tensor, trainer_log_probs: Tensor, mask: Tensor, settings: CorrectionSettings
) -> Tensor:
    """[B, T] weights without gradient for the loss of each token; 0 where masked out.

    With ``log_ratio`` summed over a row at the level of sequences, which all of its tokens share.
    """
    ratios = log_ratios(sampler_log_probs, trainer_log_probs, mask)
    if settings.level == "sequence":
        ratios = ratios.sum(1, keepdim=True).expand_as(ratios)
    capped = ratios.exp().clamp(max=settings.upper)
    if settings.mode == "masked":
        ratios_kept = (ratios.exp() >= settings.lower) & (ratios.exp() <= settings.upper)
        capped = torch.where(ratios_kept, capped, 0.0)
    return torch.where(mask.bool(), capped, 0.0)
