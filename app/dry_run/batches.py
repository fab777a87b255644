"""The arithmetic of a run's batches, on one rank and on all of them."""

import math
from typing import TYPE_CHECKING

from app.errors import ConfigurationError
from modules.grpo_lambda import GRPOLambdaModule

if TYPE_CHECKING:
    from callbacks import RolloutCallback
    from datamodules.base import ProblemDataModule
    from modules.policy_module import PolicyModule

Counts = list[tuple[str, int, int]]
"""(what, on a rank, on all ranks)."""


def batch_counts(
    module: "PolicyModule",
    data: "ProblemDataModule",
    rollouts: "RolloutCallback | None",
    ranks: int,
    row_tokens: int,
) -> Counts:
    """What one iteration consists of, where every row is as long as it can be: ``row_tokens``.

    Raises:
        ConfigurationError: a batch does not divide by the ranks, or a rank's by its mini-batches.
    """
    if isinstance(module, GRPOLambdaModule) and rollouts is not None:
        return _rl_counts(module, data.prompts_per_iteration, rollouts, ranks, row_tokens)
    return _supervised_counts(module.micro_batch_size, data.batch_size, ranks)


def _rl_counts(
    module: GRPOLambdaModule, prompts: int, rollouts: "RolloutCallback", ranks: int, row_tokens: int
) -> Counts:
    share = _share(prompts, ranks, "prompts_per_iteration")
    if share % module.updates.mini_batches:
        raise ConfigurationError(
            f"{module.updates.mini_batches} does not divide the {share} prompts of a rank "
            f"({prompts} of an iteration over {ranks} ranks): groups stay whole",
            key="model.updates.mini_batches",
        )
    completions = share * rollouts.group_size
    rows = completions // module.updates.mini_batches
    updates = module.updates.per_rollout * module.updates.mini_batches
    micro = math.ceil(rows / module.longest_rows_a_pass(row_tokens))
    longest = rollouts.sampling.max_new_tokens
    return [
        ("prompts", share, prompts),
        ("completions", completions, completions * ranks),
        ("completion tokens at most", completions * longest, completions * longest * ranks),
        ("optimiser steps", updates, updates),
        ("completions a step", rows, rows * ranks),
        ("micro-batches a step", micro, micro * ranks),
        ("forward and backward passes", micro * updates, micro * updates * ranks),
    ]


def _supervised_counts(micro_batch_size: int, examples: int, ranks: int) -> Counts:
    share = _share(examples, ranks, "batch_size")
    micro = math.ceil(share / micro_batch_size)
    return [
        ("examples", share, examples),
        ("optimiser steps", 1, 1),
        ("micro-batches a step", micro, micro * ranks),
    ]


def _share(total: int, ranks: int, key: str) -> int:
    if total % ranks:
        raise ConfigurationError(f"{total} does not divide by the {ranks} ranks", key=f"data.{key}")
    return total // ranks
