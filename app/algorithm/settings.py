"""What is optimised, as settings."""

import math
from dataclasses import dataclass

from app.algorithm.applications import APPLICATIONS, Trace
from app.algorithm.kl import KL_ESTIMATORS
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
    def trace(self) -> Trace:
        """What :data:`APPLICATIONS` read of this."""
        return Trace(self.q, self.style, self.normalise_trace)

    @property
    def q(self) -> float:
        """The trace's decay per token, γ·λ."""
        return self.gamma * self.lam
