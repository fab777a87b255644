"""DAPO's dynamic sampling (arXiv 2503.14476): groups that come out tied teach nothing and give way to others.

Whole rounds are generated and graded before anything is chosen: whoever took the groups that finish first would
prefer short completions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from app.errors import ConfigurationError
from app.rollout.experience import Rollout

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class DynamicSamplingSettings:
    """How far to go for groups that are not tied.

    Attributes:
        max_extra_rollouts: further rounds an iteration, each of as many prompts as there were in the first. Groups
            that are still tied after them stay.
    """

    max_extra_rollouts: int = 2

    def __post_init__(self) -> None:
        if self.max_extra_rollouts < 1:
            raise ConfigurationError(
                f"must be at least 1, got {self.max_extra_rollouts} (dynamic_sampling: null switches it off)",
                key="rollouts.dynamic_sampling.max_extra_rollouts",
            )


def is_tied(rewards: list[float]) -> bool:
    """Whether a group has no two different rewards; NaNs (nothing could score) do not count."""
    known = [reward for reward in rewards if reward == reward]
    return len(set(known)) < 2


def tied_groups(rollout: Rollout) -> list[int]:
    """Indices of the groups without advantages."""
    size = rollout.group_size
    groups = [rollout.rewards[start : start + size] for start in range(0, len(rollout.rewards), size)]
    return [index for index, rewards in enumerate(groups) if is_tied(rewards)]


def replace_tied(
    rollout: Rollout,
    generate: Callable[[int], Rollout],
    settings: DynamicSamplingSettings,
    any_rank: Callable[[bool], bool],
) -> Rollout:
    """``rollout`` with as many of its tied groups replaced as further rounds yield, in order, and with their cost.

    Args:
        rollout: the first round.
        generate: round number (from 1) → a graded rollout of further prompts; a pure function of it.
        settings: the bound.
        any_rank: whether any rank says so: all of them make the same number of rounds.
    """
    tied = tied_groups(rollout)
    first_share, rounds, replaced = len(tied) / len(rollout.completions), 0, 0
    while rounds < settings.max_extra_rollouts and any_rank(bool(tied)):
        rounds += 1
        extra = generate(rounds)
        useful = sorted(set(range(len(extra.completions))) - set(tied_groups(extra)))
        for target, source in zip(tied, useful, strict=False):
            rollout = put_group(rollout, target, extra, source)
            replaced += 1
        rollout = with_cost(rollout, extra)
        tied = tied[len(useful) :]
    shares = {
        "rollouts/dynamic_sampling/tied_before": first_share,
        "rollouts/dynamic_sampling/replaced": replaced / len(rollout.completions),
        "rollouts/dynamic_sampling/extra_rollouts": float(rounds),
    }
    return replace(rollout, counts=rollout.counts | shares)


def with_cost(rollout: Rollout, extra: Rollout) -> Rollout:
    """``rollout`` with what ``extra`` took besides, whatever became of its groups: runs compare at equal compute."""
    return replace(
        rollout,
        generated_tokens=rollout.generated_tokens + extra.generated_tokens,
        generated_completions=rollout.generated_completions + extra.generated_completions,
        seconds=_added(rollout.seconds, extra.seconds),
        verdicts=_added(rollout.verdicts, extra.verdicts),
        counts=rollout.counts | extra.counts,  # they count from the start of the run: the later ones hold
    )


def _added(first: dict[str, N], second: dict[str, N]) -> dict[str, N]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in first | second}


def put_group(rollout: Rollout, target: int, other: Rollout, source: int) -> Rollout:
    """``rollout`` with group ``source`` of ``other`` in the place of its group ``target``."""

    def put(values: list, others: list, width: int = 1) -> list:
        return [
            *values[: target * width],
            *others[source * width : (source + 1) * width],
            *values[(target + 1) * width :],
        ]

    size = rollout.group_size
    batch = replace(
        rollout.batch,
        problems=put(rollout.batch.problems, other.batch.problems),
        prompt_ids=put(rollout.batch.prompt_ids, other.batch.prompt_ids),
    )
    return replace(
        rollout,
        batch=batch,
        completions=put(rollout.completions, other.completions),
        texts=put(rollout.texts, other.texts, size),
        rewards=put(rollout.rewards, other.rewards, size),
        reward_columns={
            name: put(column, other.reward_columns[name], size) for name, column in rollout.reward_columns.items()
        },
    )
