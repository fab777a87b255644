"""Which rows an iteration's optimiser steps take, and which rows share a forward pass.

π_old is evaluated in the very batches that are trained on: in low precision, log-probs of a row change by about 0.005
nats with the rows and the padding beside it, and traces add that noise up over hundreds of tokens. The rows of the
first optimiser step need no pass of their own for it: that step's own forward pass is π_old's.

Shapes: B rows, group by group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.errors import require


@dataclass(frozen=True)
class UpdateSettings:
    """How often a rollout is learned from.

    Attributes:
        per_rollout: μ, passes over a rollout.
        mini_batches: optimiser steps a pass; groups stay whole, so it must divide the prompts of a rank.
    """

    per_rollout: int = 1
    mini_batches: int = 1

    def __post_init__(self) -> None:
        for name in ("per_rollout", "mini_batches"):
            value = getattr(self, name)
            require(value >= 1, "must be at least 1", value, f"model.updates.{name}")


@dataclass(frozen=True)
class UpdatePlan:
    """The same for every pass over a rollout; rows are indices into its batch.

    Attributes:
        steps: for each optimiser step of a pass its rows, those without a gradient included.
        micro_batches: for each step its rows with a gradient, in parts that share a forward and backward pass.
        others: the remaining rows, in parts.
    """

    steps: list[Tensor]
    micro_batches: list[list[Tensor]]
    others: list[Tensor]

    @property
    def passes(self) -> list[Tensor]:
        """All rows, in the parts in which they are evaluated."""
        return [part for parts in self.micro_batches for part in parts] + self.others

    @property
    def beforehand(self) -> list[Tensor]:
        """The rows that are to be evaluated under π_old before the update: all but those of its first step."""
        return [part for parts in self.micro_batches[1:] for part in parts] + self.others


def plan_updates(groups: int, with_gradient: Tensor, steps: int, split: Callable[[Tensor], list[Tensor]]) -> UpdatePlan:
    """Deals the groups out to ``steps`` optimiser steps: every ``steps``-th one, so that splitting a batch of prompts
    over ranks gives the same optimiser steps as one process does.

    Args:
        groups: number of groups, which ``steps`` divides.
        with_gradient: [B] bool: rows that the loss depends on; only they are trained on.
        steps: optimiser steps a pass.
        split: takes row indices apart into micro-batches.
    """
    with_gradient = with_gradient.cpu()
    rows = torch.arange(len(with_gradient)).view(groups, -1)
    dealt = [rows[start::steps].flatten() for start in range(steps)]
    trained = [split(step[with_gradient[step]]) for step in dealt]
    return UpdatePlan(dealt, trained, split(torch.arange(len(with_gradient))[~with_gradient]))
