"""One audit from what was drawn to what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.algorithm.advantages import AdvantageSettings, group_advantages
from app.algorithm.credit import every_variant, token_credit
from app.algorithm.objective import ObjectiveSettings
from app.credit_audit.comparison import Comparison, compare
from app.credit_audit.drawing import AuditedProblem
from app.credit_audit.estimates import Segments, segment_means, segments_of, token_advantages
from app.credit_audit.gradients import AUDITED, GradientAgreement, problem_gradients
from app.engines.engine import Completion
from app.policy.packing import TokenBatch, build
from app.rollout.collection import TruncationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class CreditRules:
    """What credit depends on besides the rewards.

    Attributes:
        objective: of the run; each variant has its q, clip, surrogate and normalisation.
        advantages: their scale and clamp.
        truncation: whether the loss counts completions that the limit cut off.
    """

    objective: ObjectiveSettings
    advantages: AdvantageSettings
    truncation: TruncationSettings

    @property
    def variants(self) -> int:
        """How many are compared."""
        return len(every_variant(self.objective))


@dataclass(frozen=True)
class AuditResult:
    """What was found.

    Attributes:
        problems: how many were audited.
        left_out: how many were drawn and have completions without a reward.
        completions, continuations, tokens: drawn for those that were audited.
        reward: mean of the completions.
        segments: with their advantages.
        credits: by variant's name, [N] a segment.
        ids: of the problems.
        comparison: of the two.
        gradients: by variant's name, where they were asked for.
    """

    problems: int
    left_out: int
    completions: int
    continuations: int
    tokens: int
    reward: float
    segments: Segments
    credits: dict[str, Tensor]
    ids: list[str]
    comparison: Comparison
    gradients: dict[str, GradientAgreement]


def batch_of(problems: Sequence[AuditedProblem]) -> TokenBatch:
    """The completions of ``problems`` with their prompts, M rows; padding holds token 0."""
    prompts = [problem.prompt_ids for problem in problems for _ in problem.completions]
    return build(prompts, [row.token_ids for problem in problems for row in problem.completions], pad_id=0)


def token_credits(problems: Sequence[AuditedProblem], rules: CreditRules) -> tuple[dict[str, Tensor], Tensor]:
    """By variant's name the credit [M, T] of every token while the policy is the one that was sampled from, and the
    mask [M, T] of the tokens that the loss counts."""
    mask = _loss_mask(problems, rules.truncation)
    rewards = torch.tensor([[row.reward for row in problem.completions] for problem in problems])
    given = group_advantages(rewards, rules.advantages.scale, rules.advantages.clamp_negative).flatten()
    unchanged = torch.zeros(mask.shape)
    variants = every_variant(rules.objective)
    return {name: token_credit(unchanged, given, mask, settings) for name, settings in variants.items()}, mask


def _loss_mask(problems: Sequence[AuditedProblem], truncation: TruncationSettings) -> Tensor:
    rows = [Completion(row.token_ids, [], row.finish_reason) for problem in problems for row in problem.completions]
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return truncation.loss_mask(mask, rows)


@dataclass(frozen=True)
class PreparedAudit:
    """The problems that have all their rewards, two at least, with what each of their tokens is worth and is given.

    Attributes:
        problems: those.
        left_out: how many others were drawn.
        segments: with their advantages.
        credits: [M, T] by variant's name.
        mask: [M, T] the tokens that the loss counts.
    """

    problems: list[AuditedProblem]
    left_out: int
    segments: Segments
    credits: dict[str, Tensor]
    mask: Tensor


def prepare(drawn: Sequence[AuditedProblem], rules: CreditRules) -> PreparedAudit | None:
    """Sets credit beside advantage; None where fewer than two problems have all their rewards.

    Args:
        drawn: of all ranks; a problem that is there twice counts once.
        rules: of credit.
    """
    once = {(problem.id, tuple(problem.prompt_ids)): problem for problem in drawn}
    problems = [problem for problem in once.values() if problem.known]
    if len(problems) < 2:
        return None
    by_token, mask = token_credits(problems, rules)
    return PreparedAudit(problems, len(once) - len(problems), segments_of(problems), by_token, mask)


def conclude(prepared: PreparedAudit, seed: int, gradients: dict[str, GradientAgreement] | None = None) -> AuditResult:
    """What the audit shows.

    Args:
        prepared: the audit.
        seed: of the draws behind intervals.
        gradients: from :func:`app.credit_audit.gradients.compare_gradients`.
    """
    problems, segments = prepared.problems, prepared.segments
    credits_NV = {name: segment_means(credit, segments) for name, credit in prepared.credits.items()}
    rewards = [row.reward for problem in problems for row in problem.completions]
    return AuditResult(
        problems=len(problems),
        left_out=prepared.left_out,
        completions=len(rewards),
        continuations=sum(problem.continuations for problem in problems),
        tokens=sum(problem.tokens for problem in problems),
        reward=sum(rewards) / len(rewards),
        segments=segments,
        credits=credits_NV,
        ids=[problem.id for problem in problems],
        comparison=compare(segments, credits_NV, seed),
        gradients=gradients or {},
    )


def audit_gradients(
    prepared: PreparedAudit, policy: "PreTrainedModel", device: torch.device, rules: CreditRules, temperature: float
) -> Tensor:
    """[P, V, parameters] of every variant and of the audited advantages, last; see
    :func:`app.credit_audit.gradients.problem_gradients`."""
    wide = token_advantages(prepared.segments, prepared.mask.shape[1])
    everything, found, first = {**prepared.credits, AUDITED: wide}, [], 0
    for problem in prepared.problems:
        rows = slice(first, first := first + len(problem.completions))
        own = {name: values[rows].to(device) for name, values in everything.items()}
        tokens, mask = batch_of([problem]).to(device), prepared.mask[rows].to(device)
        found.append(problem_gradients(policy, tokens, own, mask, rules.objective, temperature))
    return torch.stack(found)
