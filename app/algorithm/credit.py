"""The credit that a variant hands to each token: how its update pushes the log-probability of that token.

The credit of token k is −∂L/∂ log π_θ(a_k), with L the sum of the row's policy losses (no KL term, no entropy bonus),
before the reduction divides by rows or tokens. Positive pushes the token to be likelier, negative to be less so. With
ratios of 1 it is A on every token for GRPO, and A times the token's weight for the λ variants; for the ε-trace, where
the loss at t holds all tokens up to t, it is Σ_t M[t, k]·ρ_t·A over the tokens t that the clip leaves alone.

Shapes: B rows, T completion tokens; masks are right-padded. Annotations name them, and are checked at every call in the
tests.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from app.algorithm.applications import APPLICATIONS
from app.algorithm.objective import token_policy_loss
from app.algorithm.ratios import PerToken, Real, ratio_of, with_gradient_times
from app.algorithm.settings import ObjectiveSettings
from app.algorithm.surrogates import clip_shares
from app.algorithm.traces import STYLES, Mask

WITH_STYLE = ("trace", "weight", "weight_forward")
"""Applications of the trace that differ by its style."""


def token_credit(
    log_ratio: PerToken,
    advantages: Float[Tensor, " B"] | PerToken,
    mask: Mask,
    settings: ObjectiveSettings,
    importance_weights: PerToken | None = None,
    counted: Shaped[Tensor, "B T"] | None = None,
) -> PerToken:
    """−∂L/∂ log π_θ of every token, see the top of this file; by autograd through the loss itself.

    Args:
        log_ratio: ℓ = log π_θ − log π_old, [B, T] nats; masked entries may hold anything. A row that took no part in
            the update is NaN there: it got no credit.
        advantages: [B], or [B, T] for one per token.
        mask: [B, T], true or 1 on the tokens that the loss counts.
        settings: the variant.
        importance_weights: [B, T], as :func:`app.algorithm.objective.policy_objective` takes them.
        counted: [B, T], as it takes them.

    Returns:
        [B, T] in ``log_ratio``'s dtype, float32 at least, without a gradient; 0 where masked.
    """
    values, real = _known(log_ratio, mask)
    with torch.enable_grad():
        values.requires_grad_()
        seen = values if importance_weights is None else with_gradient_times(values, importance_weights.detach())
        loss, _ = token_policy_loss(seen, _per_token(advantages, values), real, counted, settings)
        (gradient,) = torch.autograd.grad(loss.where(real, 0.0).sum(), values)
    return (0.0 - gradient).where(real, 0.0)  # no −0


@torch.no_grad()
def ratio_and_clip(
    log_ratio: PerToken, advantages: Float[Tensor, " B"] | PerToken, mask: Mask, settings: ObjectiveSettings
) -> tuple[PerToken, Real]:
    """What the clip of a variant sees, and where it acts: log ρ [B, T] (z for "trace", the row's mean for "gspo", else
    ℓ itself), and [B, T] true where it takes the loss term's gradient away (or, under "cispo", bounds its ratio).

    Arguments as for :func:`token_credit`; both results are 0 where masked and on rows that took no part.
    """
    values, real = _known(log_ratio, mask)
    ratio_log, _ = APPLICATIONS[settings.application](values, real, settings.trace)
    shares = clip_shares(settings.surrogate, ratio_of(ratio_log), _per_token(advantages, values), settings.clip)
    return ratio_log.where(real, 0.0), shares["clip_ratio/region_mean"] & real


def variant_name(settings: ObjectiveSettings) -> str:
    """The name of what ``settings`` apply: "grpo", "trace_recent", "weight_both", "terminal", "gspo" …"""
    if settings.application == "none":
        return "grpo"
    styled = settings.application not in ("terminal", "fipo", "gspo")
    return f"{settings.application}_{settings.style}" if styled else settings.application


def every_variant(settings: ObjectiveSettings) -> dict[str, ObjectiveSettings]:
    """By :func:`variant_name`, in the order to show them: GRPO, each λ variant, and whatever else ``settings`` are.

    All of them keep the q, the clip, the surrogate and the normalisation of ``settings``; only where the trace is
    applied, and its style, differ.
    """
    pairs = [("none", settings.style), *((each, style) for each in WITH_STYLE for style in STYLES)]
    found = [replace(settings, application=each, style=style) for each, style in (*pairs, ("terminal", settings.style))]
    return {variant_name(each): each for each in (*found, settings)}


def _known(log_ratio: PerToken, mask: Mask) -> tuple[PerToken, Real]:
    """A copy of the log-ratios, 0 wherever nothing is known or counted, and where they are real."""
    working = torch.promote_types(log_ratio.dtype, torch.float32)
    real = mask.bool() & ~log_ratio.isnan()
    return log_ratio.detach().to(working).where(real, 0.0), real


def _per_token(advantages: Float[Tensor, " B"] | PerToken, like: PerToken) -> PerToken:
    return (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).detach().expand_as(like).to(like)
