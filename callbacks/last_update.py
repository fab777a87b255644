"""What callbacks read of an iteration that is over."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from app.rollout.experience import Experience
    from modules.grpo_lambda import GRPOLambdaModule


def last_update(module: "GRPOLambdaModule") -> "tuple[Experience, Tensor, Tensor]":
    """The experience, and as its last update saw them log π_θ − log π_old [B, T], NaN on rows that took no part, and
    the advantages [B]."""
    experience, log_ratio, advantages = module.experience, module.last_log_ratio, module.last_advantages
    assert experience is not None, "an iteration is over"
    assert log_ratio is not None, "an iteration is over"
    assert advantages is not None, "an iteration is over"
    return experience, log_ratio, advantages
