"""The GRPO-λ objective: advantages and log-probs in, one differentiable scalar out.

    loss_t = −weight_t · min(ρ_t·A, clip(ρ_t, 1−ε_low, 1+ε_high)·A) + β·KL_t

:mod:`app.algorithm.applications` says where the trace enters (what ρ and weight are).

Shapes: B rows, T completion tokens; masks are right-padded: ones, then zeros. Annotations name them, and are checked at
every call in the tests.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from app.algorithm.applications import APPLICATIONS
from app.algorithm.kl import KL_ESTIMATORS, k3
from app.algorithm.ratios import PerToken, Real, difference, ratio_of, with_gradient_times
from app.algorithm.reductions import normaliser, reduce
from app.algorithm.settings import ObjectiveSettings
from app.algorithm.traces import Mask

__all__ = ["ObjectiveSettings", "normaliser", "policy_objective"]

Scalar = Float[Tensor, ""]


def policy_objective(
    log_probs: PerToken,
    old_log_probs: PerToken,
    ref_log_probs: PerToken | None,
    advantages: Float[Tensor, " B"] | PerToken,
    mask: Mask,
    settings: ObjectiveSettings,
    normaliser: Scalar | float | None = None,
    importance_weights: PerToken | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss of one (micro-)batch and what to log of it.

    With ``normaliser`` the total of :func:`normaliser` over all micro-batches and ranks of the optimiser
    step, the losses of the micro-batches add up to that of the whole batch, and so do their gradients.
    (Where gradients are averaged over ranks rather than summed, multiply the loss by the number of ranks.)

    Args:
        log_probs: log π_θ of the sampled tokens, [B, T] nats; the only argument that needs a gradient. Work
            is done in float32, or float64 where given.
        old_log_probs: log π_old, [B, T], of the policy that the update starts from.
        ref_log_probs: log π_ref, [B, T]; may be None when β is 0; given with β = 0, it is only logged.
        advantages: [B], or [B, T] for one per token.
        mask: [B, T], true or 1 on completion tokens, EOS included; masked log-probs may hold anything.
        normaliser: the denominator of the whole optimiser step; None takes that of this batch.
        importance_weights: [B, T] constants by which the policy term's gradient with respect to each token's log π_θ
            is multiplied, as for truncated importance sampling; no value changes. Under the trace this is not the
            same as weighing the loss: the loss at t holds the tokens before t, too.

    Returns:
        The scalar loss, and detached scalars: ``tokens`` and ``rows`` (this call's counts), ``ratio_max``
        (the largest ρ), and means over this call's tokens, whatever the reduction, which combine weighted by
        ``tokens``: ``policy_loss``, ``ratio_mean`` (of ρ), ``approx_kl_old`` (k3, KL(π_old‖π_θ)),
        ``clip_ratio/low_mean``, ``/high_mean`` and ``/region_mean`` (share of tokens whose gradient the clip
        removes) and, with ``ref_log_probs``, ``kl`` and ``kl_loss`` (β times it). All are 0 without tokens.

    Raises:
        ValueError: shapes do not fit, or β > 0 without ``ref_log_probs``.

    Source: Parthasarathi et al., arXiv 2510.00194; the clip is PPO's (arXiv 1707.06347).
    """
    _check_shapes(log_probs, old_log_probs, ref_log_probs, advantages, mask, settings)
    real = mask.bool()
    log_ratio = difference(log_probs, old_log_probs, real)
    if importance_weights is not None:
        log_ratio = with_gradient_times(log_ratio, importance_weights)
    advantages = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).expand_as(log_ratio).to(log_ratio)
    ratio_log, token_weight = APPLICATIONS[settings.application](log_ratio, real, settings.trace)
    ratio = ratio_of(ratio_log)
    policy_loss = -token_weight * _clipped_surrogate(ratio, advantages, settings)
    per_token, means = policy_loss, {"policy_loss": policy_loss}
    if ref_log_probs is not None:
        kl = KL_ESTIMATORS[settings.kl_estimator](difference(ref_log_probs, log_probs, real))
        per_token = policy_loss + settings.beta * kl if settings.beta else policy_loss
        means |= {"kl": kl, "kl_loss": settings.beta * kl}
    loss = reduce(per_token, real, settings, normaliser)
    means |= {"ratio_mean": ratio, "approx_kl_old": k3(log_ratio)}
    return loss, _metrics(means | _clip_shares(ratio, advantages, settings), ratio, real)


def _check_shapes(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    settings: ObjectiveSettings,
) -> None:
    """In whatever mode: annotations alone are checked in the tests only, and a shape that broadcasts gives a number."""
    if ref_log_probs is None and settings.beta:
        raise ValueError(f"beta is {settings.beta}, so ref_log_probs must be given")
    fits = advantages.shape in (log_probs.shape, log_probs.shape[:1]) and log_probs.dim() == 2
    others = [old_log_probs, mask] if ref_log_probs is None else [old_log_probs, mask, ref_log_probs]
    if not fits or any(other.shape != log_probs.shape for other in others):
        shapes = [list(tensor.shape) for tensor in (log_probs, *others, advantages)]
        raise ValueError(f"log-probs and mask must be [B, T] and advantages [B] or [B, T], got {shapes}")


def _clipped_surrogate(ratio: PerToken, advantages: PerToken, settings: ObjectiveSettings) -> PerToken:
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def _clip_shares(ratio: PerToken, advantages: PerToken, settings: ObjectiveSettings) -> dict[str, Real]:
    """Where the clip takes the gradient away, [B, T] booleans under TRL's names."""
    low = (ratio < 1 - settings.clip_low) & (advantages < 0)
    high = (ratio > 1 + settings.clip_high) & (advantages > 0)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


@torch.no_grad()
def _metrics(means: dict[str, Shaped[Tensor, "B T"]], ratio: PerToken, mask: Real) -> dict[str, Scalar]:
    tokens = mask.sum().to(ratio.dtype)
    averages = {name: values.where(mask, 0).sum() / tokens.clamp(min=1) for name, values in means.items()}
    largest = ratio.where(mask, 0.0).amax() if ratio.numel() else ratio.new_zeros(())
    return averages | {"ratio_max": largest, "tokens": tokens, "rows": tokens.new_tensor(float(len(mask)))}
