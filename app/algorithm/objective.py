"""The GRPO-λ objective: advantages and log-probs in, one differentiable scalar out.

    loss_t = −weight_t · min(ρ_t·A, clip(ρ_t, 1−ε_low, 1+ε_high)·A) + β·KL_t − c·H_t

:mod:`app.algorithm.applications` says where the trace enters (what ρ and weight are), :mod:`app.algorithm.surrogates`
what may stand in the place of the minimum, :mod:`app.algorithm.kl` how KL is estimated; H is the policy's entropy.

Shapes: B rows, T completion tokens; masks are right-padded: ones, then zeros. Annotations name them, and are checked at
every call in the tests.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from app.algorithm.applications import APPLICATIONS
from app.algorithm.kl import KL_ESTIMATORS, k3
from app.algorithm.ratios import PerToken, Real, difference, ratio_of, with_gradient_times
from app.algorithm.reductions import normaliser, reduce
from app.algorithm.settings import ObjectiveSettings
from app.algorithm.surrogates import SURROGATES, clip_shares
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
    entropy: PerToken | None = None,
    counted: Shaped[Tensor, "B T"] | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss of one (micro-)batch and what to log of it.

    With ``normaliser`` the total of :func:`normaliser` over all micro-batches and ranks of the optimiser step, the
    losses of the micro-batches add up to that of the whole batch, and so do their gradients. (Where gradients are
    averaged over ranks rather than summed, multiply the loss by the number of ranks.)

    Args:
        log_probs: log π_θ of the sampled tokens, [B, T] nats, with its gradient; worked on in float32 at least.
        old_log_probs: log π_old, [B, T], of the policy that the update starts from.
        ref_log_probs: log π_ref, [B, T]; may be None when β is 0; given with β = 0, it is only logged.
        advantages: [B], or [B, T] for one per token.
        mask: [B, T], true or 1 on completion tokens, EOS included; masked log-probs may hold anything.
        normaliser: the denominator of the whole optimiser step; None takes that of this batch.
        importance_weights: [B, T] constants by which the policy term's gradient with respect to each token's log π_θ is
            multiplied; no value changes. It is not the loss that is weighed: under the trace it holds earlier tokens.
        entropy: H [B, T] of π_θ in nats, with its gradient; may be None where ``entropy_bonus`` is 0.
        counted: [B, T], true or 1 where the policy term counts, see ``top_entropy_share``; None counts every token. The
            denominator stays that of ``mask``.

    Returns:
        The scalar loss, and detached scalars: ``tokens`` and ``rows`` (this call's counts), ``ratio_max`` (the largest
        ρ), and means over this call's tokens, whatever the reduction, which combine weighted by ``tokens``:
        ``policy_loss``, ``ratio_mean`` (of ρ), ``approx_kl_old`` (k3, KL(π_old‖π_θ)), ``clip_ratio/low_mean``,
        ``/high_mean``, with a dual clip ``/dual_mean``, and ``/region_mean`` (share of tokens whose gradient the clip
        removes, or whose ratio it bounds under "cispo"); with ``ref_log_probs`` ``kl`` and ``kl_loss`` (β times it);
        with ``entropy`` ``entropy_loss`` (−c times it). All are 0 without tokens.

    Raises:
        ValueError: shapes do not fit, β > 0 without ``ref_log_probs``, or an entropy bonus without ``entropy``.

    Source: Parthasarathi et al., arXiv 2510.00194; the clip is PPO's (arXiv 1707.06347).
    """
    _check_shapes(log_probs, advantages, [old_log_probs, mask, ref_log_probs, importance_weights, entropy, counted])
    real = mask.bool()
    plain = difference(log_probs, old_log_probs, real)
    log_ratio = plain if importance_weights is None else with_gradient_times(plain, importance_weights)
    advantages = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).expand_as(plain).to(plain)
    policy_loss, ratio = token_policy_loss(log_ratio, advantages, real, counted, settings)
    means = {"policy_loss": policy_loss, "ratio_mean": ratio, "approx_kl_old": k3(plain)}
    if ref_log_probs is not None:
        means["kl"] = KL_ESTIMATORS[settings.kl_estimator](difference(ref_log_probs, log_probs, real), plain)
        means["kl_loss"] = settings.beta * means["kl"]
    if entropy is not None:
        means["entropy_loss"] = -settings.entropy_bonus * entropy.where(real, 0.0)
    per_token = policy_loss + _needed(means, "kl_loss", "ref_log_probs", settings.beta, "beta")
    per_token = per_token + _needed(means, "entropy_loss", "entropy", settings.entropy_bonus, "entropy_bonus")
    shares = clip_shares(settings.surrogate, ratio, advantages, settings.clip)
    return reduce(per_token, real, settings, normaliser), _metrics(means | shares, ratio, real)


def token_policy_loss(
    log_ratio: PerToken,
    advantages: PerToken,
    real: Real,
    counted: Shaped[Tensor, "B T"] | None,
    settings: ObjectiveSettings,
) -> tuple[PerToken, PerToken]:
    """The policy term of each token before any reduction, [B, T] with its gradient, and its ρ [B, T].

    Args:
        log_ratio: ℓ [B, T], 0 where masked.
        advantages: [B, T].
        real: [B, T], true on the tokens that count.
        counted: as :func:`policy_objective` takes it.
        settings: traces and clip.
    """
    ratio_log, token_weight = APPLICATIONS[settings.application](log_ratio, real, settings.trace)
    loss = -token_weight * SURROGATES[settings.surrogate](ratio_log, advantages, settings.clip)
    return loss if counted is None else loss.where(counted.bool(), 0.0), ratio_of(ratio_log)


def _needed(means: dict[str, PerToken], name: str, argument: str, factor: float, option: str) -> PerToken | float:
    """The term that ``option`` asks for; 0 where it does not."""
    if factor and name not in means:
        raise ValueError(f"{option} is {factor}, so {argument} must be given")
    return means[name] if factor else 0.0


def _check_shapes(log_probs: Tensor, advantages: Tensor, others: Sequence[Tensor | None]) -> None:
    """In whatever mode: annotations are checked in the tests alone, and a shape that broadcasts gives a number."""
    fits = advantages.shape in (log_probs.shape, log_probs.shape[:1]) and log_probs.dim() == 2
    given = [other for other in others if other is not None]
    if not fits or any(other.shape != log_probs.shape for other in given):
        shapes = [list(tensor.shape) for tensor in (log_probs, *given, advantages)]
        raise ValueError(f"log-probs and mask must be [B, T] and advantages [B] or [B, T], got {shapes}")


@torch.no_grad()
def _metrics(means: dict[str, Shaped[Tensor, "B T"]], ratio: PerToken, mask: Real) -> dict[str, Scalar]:
    tokens = mask.sum().to(ratio.dtype)
    averages = {name: values.where(mask, 0).sum() / tokens.clamp(min=1) for name, values in means.items()}
    largest = ratio.where(mask, 0.0).amax() if ratio.numel() else ratio.new_zeros(())
    return averages | {"ratio_max": largest, "tokens": tokens, "rows": tokens.new_tensor(float(len(mask)))}
