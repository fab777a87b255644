"""What is optimised, as settings."""

import math
from dataclasses import dataclass

from app.algorithm.applications import APPLICATIONS, NOT_NORMALISED, Trace
from app.algorithm.kl import KL_ESTIMATORS
from app.algorithm.surrogates import SURROGATES, Clip
from app.algorithm.traces import STYLES
from app.errors import require, require_choice

REDUCTIONS = ("sequence", "token", "constant")


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is optimised. The defaults are GRPO-λ with the ε-trace; ``application: none`` is GRPO.

    Attributes:
        gamma: discount γ in [0, 1].
        lam: trace decay λ in [0, 1]; only q = γ·λ matters.
        style: trace style, "recent" or "both".
        application: where the trace acts: "none" (GRPO), "trace", "weight", "weight_forward" or "terminal"; as a
            control, "weight_reverse" (the forward weights reversed in time); and what others do instead of a trace:
            "fipo" (weights by what the update has done to the tokens that follow, decaying by q) or "gspo" (one ratio
            a sequence, the geometric mean of its tokens', which needs a far narrower clip, such as 3e-4 and 4e-4).
        clip_low: ε_low in [0, 1]; 1 switches the lower clip off.
        clip_high: ε_high ≥ 0; infinity switches the upper clip off.
        beta: weight of the KL term to the reference policy; 0 needs no reference.
        kl_estimator: "k1" (whose gradient is noise), "k2" (the gradient of KL(π_θ‖π_ref)), "k3" (GRPO's: the
            gradient of KL(π_ref‖π_θ)) or "k3_ratio" (k3 times the token's ratio: the gradient of KL(π_θ‖π_ref), also
            after the first update of a rollout; TRL's ``use_bias_correction_kl``).
        reduction: "sequence" (mean over a row's tokens, then over rows), "token" (mean over all tokens) or
            "constant" (sum / (rows · max_tokens)).
        normalise_trace: divide by the row's mean weight, so that the step does not grow by up to 1/(1−q).
        max_tokens: longest possible completion, for the "constant" reduction, which requires it.
        surrogate: "ppo" (the smaller of ρ·A and clip(ρ)·A, which takes the gradient of clipped tokens away) or "cispo"
            (log ρ times A and the constant clip(ρ), which takes none away; its authors leave the lower clip off,
            ``clip_low: 1``, and TRL's ``epsilon_high: 5`` is ``clip_high: 4``).
        dual_clip: c > 1: a negative advantage counts at most c times, however large its ratio (commonly 3; TRL's
            ``delta``); of "ppo" alone. Null sets no bound.
        fipo_clip: how far the weights of "fipo" may be from 1, in [0, 1].
        entropy_bonus: weight of the mean token entropy, which is added to what is maximised; 0 leaves it out. Its
            backward pass takes longer, and no more memory.
        top_entropy_share: the policy loss counts this share of an iteration's tokens alone, those at which the policy
            before the update was least certain (commonly 0.2); 1 counts all. KL term and entropy bonus count every one.

    Raises:
        ConfigurationError: a value out of range, an unknown name, ``max_tokens`` missing, or options that do not go
            together.
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
    surrogate: str = "ppo"
    dual_clip: float | None = None
    fipo_clip: float = 0.2
    entropy_bonus: float = 0.0
    top_entropy_share: float = 1.0

    def __post_init__(self) -> None:
        self._check_names()
        self._check_limits()
        self._check_combinations()

    def _check_limits(self) -> None:
        limits = {
            "gamma": (0 <= self.gamma <= 1, "must lie in [0, 1]"),
            "lam": (0 <= self.lam <= 1, "must lie in [0, 1]"),
            "clip_low": (0 <= self.clip_low <= 1, "must lie in [0, 1] (1 switches the lower clip off)"),
            "clip_high": (self.clip_high >= 0, "must be at least 0 (infinity switches the upper clip off)"),
            "beta": (0 <= self.beta < math.inf, "must be at least 0 and finite (0 leaves the KL term out)"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "must be at least 1"),
            "dual_clip": (self.dual_clip is None or self.dual_clip > 1, "must be above 1, or null for no bound"),
            "fipo_clip": (0 <= self.fipo_clip <= 1, "must lie in [0, 1]"),
            "entropy_bonus": (0 <= self.entropy_bonus < math.inf, "must be at least 0 and finite (0 leaves it out)"),
            "top_entropy_share": (0 < self.top_entropy_share <= 1, "must lie in (0, 1] (1 counts every token)"),
        }
        for name, (holds, rule) in limits.items():
            require(holds, rule, getattr(self, name), key=f"objective.{name}")

    def _check_combinations(self) -> None:
        """By name, with what to do instead."""
        application, surrogate = self.application, self.surrogate
        needs_length = self.reduction == "constant" and self.max_tokens is None
        unbounded = self.dual_clip is not None and surrogate != "ppo"
        no_sums = self.normalise_trace and application in NOT_NORMALISED
        refusals = {
            "max_tokens": (needs_length, "reduction 'constant' needs it: set the longest completion"),
            "dual_clip": (unbounded, f"surrogate {surrogate!r} bounds every ratio by clip_high: leave it out"),
            "normalise_trace": (no_sums, f"application {application!r} has no trace to normalise: set it to false"),
        }
        for name, (holds, rule) in refusals.items():
            require(not holds, rule, getattr(self, name), key=f"objective.{name}")

    def _check_names(self) -> None:
        require_choice(self.style, STYLES, key="objective.style")
        require_choice(self.application, APPLICATIONS, key="objective.application")
        require_choice(self.kl_estimator, KL_ESTIMATORS, key="objective.kl_estimator")
        require_choice(self.reduction, REDUCTIONS, key="objective.reduction")
        require_choice(self.surrogate, SURROGATES, key="objective.surrogate")

    @property
    def trace(self) -> Trace:
        """What :data:`APPLICATIONS` read of this."""
        return Trace(self.q, self.style, self.normalise_trace, self.fipo_clip)

    @property
    def clip(self) -> Clip:
        """What :data:`SURROGATES` read of this."""
        return Clip(self.clip_low, self.clip_high, self.dual_clip)

    @property
    def counts_every_row(self) -> bool:
        """Whether rows without an advantage have a gradient, too: by the KL term or the entropy bonus."""
        return self.beta > 0 or self.entropy_bonus > 0

    @property
    def q(self) -> float:
        """The trace's decay per token, γ·λ."""
        return self.gamma * self.lam
