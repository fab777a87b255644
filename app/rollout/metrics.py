"""What is logged of an iteration before its update: rewards, lengths, times, and the engine's mismatch."""

from typing import TYPE_CHECKING

import torch

from app.rollout.experience import Experience, Rollout
from app.rollout.metric_sums import MetricSums
from app.rollout.mismatch import record_mismatch

if TYPE_CHECKING:
    from app.policy.shared_prompts import Work


def record_rollout(sums: MetricSums, rollout: Rollout) -> None:
    """Rewards, lengths, truncation and times of ``rollout``, under the names that people know from TRL.

    Under dynamic sampling ``rollouts/verdicts/…``, ``speed/time/generate`` and ``speed/time/grade`` are of all that was
    generated, given-up groups included; rewards and ``completions/…`` are of the groups that are learned from.
    """
    rewards = torch.tensor(rollout.rewards, dtype=torch.float64).view(-1, rollout.group_size)
    sums.add_values("reward", rewards)
    sums.add("completions/unscored", float(rewards.isnan().double().mean()), rewards.numel())
    _record_groups(sums, rewards)
    for name, column in rollout.reward_columns.items():
        sums.add_values(f"rewards/{name}/mean", torch.tensor(column, dtype=torch.float64))
    _record_lengths(sums, rollout)
    _record_verdicts(sums, rollout)
    sums.add_all({f"speed/time/{name}": seconds for name, seconds in rollout.seconds.items()})
    sums.add_all(rollout.counts)
    sums.add("rollouts/staleness", float(rollout.batch.iteration - rollout.weights_iteration))


def _record_groups(sums: MetricSums, rewards: torch.Tensor) -> None:
    for group in rewards:
        known = group[~group.isnan()]
        if len(known) < 2:
            continue
        sums.add("reward_std", known.std())
        sums.add("frac_reward_zero_std", float((known == known[0]).all()))


def _record_lengths(sums: MetricSums, rollout: Rollout) -> None:
    lengths = torch.tensor([len(row.token_ids) for row in rollout.rows], dtype=torch.float64)
    sums.add_values("completions/mean_length", lengths)
    sums.extremes(lengths, "completions/min_length", "completions/max_length")
    clipped = torch.tensor([row.finish_reason == "length" for row in rollout.rows], dtype=torch.float64)
    sums.add_values("completions/clipped_ratio", clipped)


def _record_verdicts(sums: MetricSums, rollout: Rollout) -> None:
    """The share of each reason among the completions that were graded."""
    graded = sum(rollout.verdicts.values())
    for reason, count in rollout.verdicts.items():
        sums.add(f"rollouts/verdicts/{reason}", count / graded, graded)


def record_policy(experience: Experience) -> None:
    """Adds to the experience's own metrics what π_old's log-probs show, once they are known of every row.

    ``policy/updates/old_pass_share`` is the share of rows that took a pass of their own for it.
    """
    sums, mask = experience.metrics, experience.tokens.completion_mask.bool()
    rows = len(mask)
    sums.add("policy/updates/old_pass_share", 1 - len(experience.pending) / rows, rows)
    sums.add_values("entropy", experience.entropy[mask])
    record_mismatch(sums, experience.sampler_log_probs, experience.old_log_probs, mask)


def record_work(sums: MetricSums, work: "Work") -> None:
    """Adds what a training pass computed: ``policy/updates/padding_share`` is the share of positions that are padding,
    ``policy/updates/shared_token_share`` that of its rows' tokens that another row had computed."""
    real = work.computed - work.padding
    sums.add("policy/updates/padding_share", work.padding / work.computed, work.computed)
    sums.add("policy/updates/shared_token_share", work.shared / (real + work.shared), real + work.shared)
