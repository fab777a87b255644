"""Group-relative advantages: the critic-free estimate that GRPO-λ uses as its TD error.

Shapes: P prompts, G completions a prompt (a group). Annotations name them, and are checked at every call in the tests.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from app.errors import ConfigurationError, require, require_choice

SCALES = ("std", "none", "batch")
EPSILON = 1e-4  # in every denominator, as in TRL: keeps nearly tied groups from exploding

PerCompletion = Float[Tensor, "P G"]
Scored = Bool[Tensor, "P G"]


@dataclass(frozen=True)
class AdvantageSettings:
    """How a completion's reward becomes its advantage.

    Attributes:
        scale: "std", "batch" or "none": what centred rewards are divided by.
        clamp_negative: advantages below minus this are raised to it (the paper: 0.1); null switches it off.
    """

    scale: str = "std"
    clamp_negative: float | None = 0.1

    def __post_init__(self) -> None:
        check_advantage_settings(self.scale, self.clamp_negative, "advantages.")


def check_advantage_settings(scale: str, clamp_negative: float | None, place: str = "") -> None:
    """Refuse settings that :func:`group_advantages` could not use, before anything slow starts.

    Raises:
        ConfigurationError: ``scale`` is unknown or ``clamp_negative`` is below 0; ``place`` comes before their names.
    """
    require_choice(scale, SCALES, key=f"{place}scale")
    if clamp_negative is not None:
        rule = "must be at least 0 (advantages are cut off below minus this), or null for no cut"
        require(clamp_negative >= 0, rule, clamp_negative, key=f"{place}clamp_negative")


def group_advantages(
    rewards: Shaped[Tensor, "P G"], scale: str = "std", clamp_negative: float | None = None
) -> PerCompletion:
    """A = (R − mean of the group) / (std + 1e-4), then A ← max(A, −clamp_negative).

    Standard deviations are the unbiased ones (divisor n − 1), as in TRL. A NaN reward says that nothing could
    score this completion: it is left out of its group's mean and std, and its advantage is 0. A group that is
    tied, or that has fewer than two scored completions, gets exactly 0 throughout.

    Args:
        rewards: [P, G], finite or NaN, G ≥ 2.
        scale: the std divided by: "std" the group's; "batch" that of all the rewards given (with several
            ranks, pass the rewards of all of them); "none" no division (Dr. GRPO).
        clamp_negative: c ≥ 0; None leaves negative advantages alone. GRPO-λ's paper uses 0.1.

    Returns:
        Advantages [P, G], in the rewards' floating dtype (float32 for integers).

    Raises:
        ConfigurationError: bad settings, G < 2, a shape that is not [P, G], or an infinite reward.

    Source: Shao et al., arXiv 2402.03300 (std); Liu et al., arXiv 2503.20783 (none); the clamp and the use as
    TD error: Parthasarathi et al., arXiv 2510.00194.
    """
    check_advantage_settings(scale, clamp_negative)
    _check_rewards(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    scored = ~rewards.isnan()
    advantages = _centred(rewards, scored)
    if scale == "std":
        advantages = advantages / (_std(rewards, scored, dim=1) + EPSILON)
    elif scale == "batch":
        advantages = advantages / (_std(rewards.reshape(1, -1), scored.reshape(1, -1), dim=1) + EPSILON)
    return advantages if clamp_negative is None else advantages.clamp(min=-clamp_negative)


def _check_rewards(rewards: Shaped[Tensor, "..."]) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        rule = "rewards must be [prompts, completions] with at least 2 completions a prompt"
        raise ConfigurationError(f"{rule}, got {list(rewards.shape)}")
    if rewards.isinf().any():
        prompt, completion = rewards.isinf().nonzero()[0].tolist()
        where = f"the reward of prompt {prompt}, completion {completion} is infinite"
        raise ConfigurationError(f"{where}; return a number, or NaN where there is none")


def _mean(values: PerCompletion, scored: Scored, dim: int) -> Float[Tensor, "_ _"]:
    """Mean over the scored entries, 0 where there are none."""
    count = scored.sum(dim, keepdim=True).clamp(min=1)
    return values.where(scored, 0.0).sum(dim, keepdim=True) / count


def _std(values: PerCompletion, scored: Scored, dim: int) -> Float[Tensor, "_ _"]:
    """Unbiased std over the scored entries, 0 where there are fewer than two."""
    squares = (values - _mean(values, scored, dim)).where(scored, 0.0).square()
    return (squares.sum(dim, keepdim=True) / (scored.sum(dim, keepdim=True) - 1).clamp(min=1)).sqrt()


def _centred(rewards: PerCompletion, scored: Scored) -> PerCompletion:
    """R − mean of the group; exactly 0 where unscored or tied, which a rounded mean alone would not give."""
    highest = rewards.where(scored, -torch.inf).amax(1, keepdim=True)
    lowest = rewards.where(scored, torch.inf).amin(1, keepdim=True)
    return (rewards - _mean(rewards, scored, 1)).where(scored & (highest > lowest), 0.0)
