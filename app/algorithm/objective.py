"""The GRPO-λ objective: advantages and log-probs in, one differentiable scalar out.

    loss_t = −weight_t · min(ρ_t·A, clip(ρ_t, 1−ε_low, 1+ε_high)·A) + β·KL_t

:data:`APPLICATIONS` says where the trace enters (what ρ and weight are); a new variant is one function there.

Shapes: B rows, T completion tokens; masks are right-padded: ones, then zeros.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.algorithm.traces import STYLES, accumulate, mean_weight, weights
from app.errors import require, require_choice

# e^20 ≈ 5e8 is past any clip. Beyond it exp is held flat: an overflow would turn the zero gradient of a
# clipped token into 0·inf = NaN, and accumulated ratios do get there. Ratios up to the bound are untouched.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is optimised. The defaults are GRPO-λ with the ε-trace; ``application: none`` is GRPO.

    Attributes:
        gamma: discount γ in [0, 1].
        lam: trace decay λ in [0, 1]; only q = γ·λ matters.
        style: trace style, "recent" or "both".
        application: where the trace acts: "none", "trace", "weight", "weight_forward" or "terminal".
        clip_low: ε_low in [0, 1]; 1 switches the lower clip off.
        clip_high: ε_high ≥ 0; infinity switches the upper clip off.
        beta: weight of the KL term to the reference policy; 0 needs no reference.
        kl_estimator: "k1" (whose gradient is noise), "k2" (the gradient of KL(π_θ‖π_ref)) or "k3" (GRPO's: the
            gradient of KL(π_ref‖π_θ)).
        reduction: "sequence" (mean over a row's tokens, then over rows), "token" (mean over all tokens) or
            "constant" (sum / (rows · max_tokens)).
        normalise_trace: divide by the row's mean weight, so that the step does not grow by up to 1/(1−q).
        max_tokens: longest possible completion, for the "constant" reduction, which requires it.

    Raises:
        ConfigurationError: a value out of range, an unknown name, or ``max_tokens`` missing.
    """

    gamma: float = 1.0
    lam: float = 0.99
    style: str = "both"
    application: str = "trace"
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    kl_estimator: str = "k3"
    reduction: str = "sequence"
    normalise_trace: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        self._check_names()
        limits = {
            "gamma": (0 <= self.gamma <= 1, "must lie in [0, 1]"),
            "lam": (0 <= self.lam <= 1, "must lie in [0, 1]"),
            "clip_low": (0 <= self.clip_low <= 1, "must lie in [0, 1] (1 switches the lower clip off)"),
            "clip_high": (self.clip_high >= 0, "must be at least 0 (infinity switches the upper clip off)"),
            "beta": (0 <= self.beta < math.inf, "must be at least 0 and finite (0 leaves the KL term out)"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "must be at least 1"),
        }
        for name, (holds, rule) in limits.items():
            require(holds, rule, getattr(self, name), key=f"objective.{name}")
        needs_length = self.reduction == "constant" and self.max_tokens is None
        require(
            not needs_length,
            "reduction 'constant' needs it: set the longest completion",
            None,
            "objective.max_tokens",
        )

    def _check_names(self) -> None:
        require_choice(self.style, STYLES, key="objective.style")
        require_choice(self.application, APPLICATIONS, key="objective.application")
        require_choice(self.kl_estimator, KL_ESTIMATORS, key="objective.kl_estimator")
        require_choice(self.reduction, REDUCTIONS, key="objective.reduction")

    @property
    def q(self) -> float:
        """The trace's decay per token, γ·λ."""
        return self.gamma * self.lam


def policy_objective(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    settings: ObjectiveSettings,
    normaliser: Tensor | float | None = None,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
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
    log_ratio = _difference(log_probs, old_log_probs, real)
    if importance_weights is not None:
        log_ratio = _with_gradient_times(log_ratio, importance_weights)
    advantages = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).to(log_ratio.dtype)
    ratio_log, token_weight = APPLICATIONS[settings.application](log_ratio, real, settings)
    ratio = ratio_log.clamp(max=MAX_LOG_RATIO).exp()
    policy_loss = -token_weight * _clipped_surrogate(ratio, advantages, settings)
    per_token, means = policy_loss, {"policy_loss": policy_loss}
    if ref_log_probs is not None:
        kl = KL_ESTIMATORS[settings.kl_estimator](_difference(ref_log_probs, log_probs, real))
        per_token = policy_loss + settings.beta * kl if settings.beta else policy_loss
        means |= {"kl": kl, "kl_loss": settings.beta * kl}
    loss = _reduce(per_token, real, settings, normaliser)
    means |= {"ratio_mean": ratio, "approx_kl_old": _k3(log_ratio)}
    return loss, _metrics(means | _clip_shares(ratio, advantages, settings), ratio, real)


def normaliser(mask: Tensor, settings: ObjectiveSettings) -> Tensor:
    """The denominator of these rows, to be summed over the micro-batches and ranks of one optimiser step.

    "sequence": rows; "token": tokens; "constant": rows · max_tokens. A row without tokens counts as a row,
    as in TRL: leave rows that are mere filler out of ``mask``.

    Args:
        mask: [B, T].

    Returns:
        A scalar, float64 so that sums of counts stay exact.
    """
    rows = torch.tensor(float(len(mask)), dtype=torch.float64, device=mask.device)
    if settings.reduction == "token":
        return mask.bool().sum().double()
    return rows * settings.max_tokens if settings.reduction == "constant" else rows


def _check_shapes(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    settings: ObjectiveSettings,
) -> None:
    if ref_log_probs is None and settings.beta:
        raise ValueError(f"beta is {settings.beta}, so ref_log_probs must be given")
    fits = advantages.shape in (log_probs.shape, log_probs.shape[:1]) and log_probs.dim() == 2
    others = [old_log_probs, mask] if ref_log_probs is None else [old_log_probs, mask, ref_log_probs]
    if not fits or any(other.shape != log_probs.shape for other in others):
        shapes = [list(tensor.shape) for tensor in (log_probs, *others, advantages)]
        raise ValueError(f"log-probs and mask must be [B, T] and advantages [B] or [B, T], got {shapes}")


def _difference(minuend: Tensor, subtrahend: Tensor, real: Tensor) -> Tensor:
    """In float32 at least (bfloat16 differences of log-probs are noise); 0 where masked."""
    working = torch.promote_types(torch.promote_types(minuend.dtype, subtrahend.dtype), torch.float32)
    return (minuend.to(working) - subtrahend.to(working)).where(real, 0.0)


def _with_gradient_times(values: Tensor, factors: Tensor) -> Tensor:
    """``values``, bit for bit, whose gradient is multiplied by ``factors``."""
    scaled = values * factors.to(values.dtype)
    return values.detach() + (scaled - scaled.detach())


def _clipped_surrogate(ratio: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> Tensor:
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


# ── where the trace is applied: (ℓ, mask, settings) → (log ρ, weight), all [B, T] ──

Application = Callable[[Tensor, Tensor, ObjectiveSettings], tuple[Tensor, Tensor]]


def _none(log_ratio: Tensor, mask: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """GRPO."""
    return log_ratio, torch.ones_like(log_ratio)


def _trace(log_ratio: Tensor, mask: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """The paper's ε-trace: gradients reach every past token, and the clip sees the accumulated ratio."""
    traces = accumulate(log_ratio, mask, settings.q, settings.style)
    if not settings.normalise_trace:
        return traces, torch.ones_like(traces)
    # at π_θ = π_old the gradient of token k is multiplied by W_k: its row mean is what the step grows by
    growth = mean_weight(mask, settings.q, settings.style, "forward", log_ratio.dtype).unsqueeze(-1)
    return traces, (1 / growth).where(mask, 0.0)


def _weight(log_ratio: Tensor, mask: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """The paper's ε-weight, in the reading with the best support: row sums ω of the trace matrix."""
    omega = weights(mask, settings.q, settings.style, "backward", log_ratio.dtype)
    return log_ratio, _normalised(omega, mask, settings)


def _weight_forward(log_ratio: Tensor, mask: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """Column sums W: the forward view, GAE with every TD error equal to A."""
    forward = weights(mask, settings.q, settings.style, "forward", log_ratio.dtype)
    return log_ratio, _normalised(forward, mask, settings)


def _terminal(log_ratio: Tensor, mask: Tensor, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """q^(length−1−t): the reward is seen at the last token only."""
    steps_left = mask.flip(-1).cumsum(-1, dtype=torch.int64).flip(-1) - 1
    decay = (settings.q ** steps_left.clamp(min=0).double()).to(log_ratio.dtype).where(mask, 0.0)
    return log_ratio, _normalised(decay, mask, settings)


def _normalised(token_weight: Tensor, mask: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Divided by the row's mean if so set. A row with a token has a positive mean; in the others all is 0."""
    if not settings.normalise_trace:
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


# ── estimators of KL(π_θ‖π_ref) from r = log π_ref − log π_θ (Schulman, "Approximating KL Divergence") ──
# What is said of their values does not hold for their gradients at fixed samples of π_θ, which is what a loss takes.


def _k1(log_ratio: Tensor) -> Tensor:
    """−r: unbiased, of high variance, of either sign. Its gradient is noise with mean 0: nothing pulls to π_ref."""
    return -log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    """r²/2: biased, low variance. Its gradient is that of KL(π_θ‖π_ref), unbiased."""
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(r) − r − 1: unbiased, low variance, never negative. Its gradient is that of KL(π_ref‖π_θ), unbiased.

    Held flat past the bound, as the ratios are.
    """
    bounded = log_ratio.clamp(max=MAX_LOG_RATIO)
    return bounded.exp() - bounded - 1


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


# ── reductions and metrics ──

REDUCTIONS = ("sequence", "token", "constant")


def _reduce(per_token: Tensor, mask: Tensor, settings: ObjectiveSettings, denominator: Tensor | float | None) -> Tensor:
    """[B, T] → scalar. Without tokens it is 0 but keeps its graph: every rank can run its backward pass."""
    if denominator is None:
        denominator = normaliser(mask, settings)
    row_sums = per_token.where(mask, 0.0).sum(-1)
    if settings.reduction == "sequence":
        row_sums = row_sums / mask.sum(-1).clamp(min=1)
    return (row_sums.sum() / (denominator + (denominator == 0))).to(row_sums.dtype)  # no tokens: 0 / 1


def _clip_shares(ratio: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> dict[str, Tensor]:
    """Where the clip takes the gradient away, [B, T] booleans under TRL's names."""
    low = (ratio < 1 - settings.clip_low) & (advantages < 0)
    high = (ratio > 1 + settings.clip_high) & (advantages > 0)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low | high}


@torch.no_grad()
def _metrics(means: dict[str, Tensor], ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    tokens = mask.sum().to(ratio.dtype)
    averages = {name: values.where(mask, 0).sum() / tokens.clamp(min=1) for name, values in means.items()}
    largest = ratio.where(mask, 0.0).amax() if ratio.numel() else ratio.new_zeros(())
    return averages | {"ratio_max": largest, "tokens": tokens, "rows": tokens.new_tensor(float(len(mask)))}
