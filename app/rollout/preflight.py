"""The first rollout's check: do engine and trainer mean the same distribution, and if not, which setting is to blame?

Each possible cause is a hypothesis with log-probs of its own: what the engine would have reported, had that setting
been other than the trainer thinks. The one that explains most of the difference is named.

Shapes: B rows, T completion tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.engines.engine import SamplingSettings
from app.engines.ranks import RolloutRanks
from app.errors import CommonError
from app.policy.logprobs import completion_logits, selective_log_softmax, token_log_probs
from app.policy.sharding.gathering import whole_parameters
from app.rollout.mismatch import log_ratios

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.packing import TokenBatch

log = logging.getLogger(__name__)

ROWS = 8
"""Rows of the rollout whose log-probs are compared."""
EXCERPT_ROWS, EXCERPT_TOKENS = 2, 64
"""Rows, and tokens a row, that hypotheses are evaluated on: whole distributions of them fit beside any training run."""
EXPLAINED = 0.25
"""A hypothesis is named if it leaves less than this share of the difference."""
CORRECT = "correct for it by importance weights (rollouts.mismatch.correction: {})"
TEMPERATURES = tuple(0.25 * 2 ** (step / 8) for step in range(33))
TOP_PS = (0.95, 0.9, 0.8, 0.7, 0.5)
TOP_KS = (2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Hypothesis:
    """A possible cause.

    Attributes:
        cause: its name.
        advice: what to look at.
        log_probs: [B, T] that the engine would report if it were true.
        noise: True where the cause only says how large the difference would be, not what it is token by token.
        corrected: True where importance weights make up for it, so that a run that has them may go on.
    """

    cause: str
    advice: str
    log_probs: Tensor
    noise: bool = False
    corrected: bool = False


class MismatchError(CommonError):
    """Engine and trainer disagree by more than the limit. ``cause`` is the likely one, "unknown" if none fits."""

    def __init__(self, difference: float, limit: float, cause: str, advice: str) -> None:
        super().__init__(
            f"on the first rollout engine and trainer differ by {difference:.2g} nats a token (limit {limit:g}). "
            f"Likely cause: {cause}. {advice}"
        )
        self.cause = cause


def check_first_rollout(
    policy: "PreTrainedModel",
    tokens: "TokenBatch",
    sampler_log_probs: Tensor,
    trainer_log_probs: Tensor,
    sampling: SamplingSettings,
    ranks: RolloutRanks,
    limit: float = 0.02,
    old_policy: "PreTrainedModel | None" = None,
    other_prompts: "TokenBatch | None" = None,
    corrected: bool = False,
    forbidden: Sequence[int] = (),
) -> float:
    """The mean |difference| a token over the first ``ROWS`` rows of this rank, where no rank exceeds ``limit``.

    Collective: where one does, all look for the cause, and the one that differs most names it on all of them. They
    look where the rows differ most, at a few tokens alone.

    Args:
        policy: the trainer's, sharded or not.
        tokens: the rollout, with [B, T] completions.
        sampler_log_probs: [B, T] as the engine reported them.
        trainer_log_probs: [B, T] as the trainer evaluates them.
        sampling: as the trainer thinks that the engine draws.
        ranks: those that learn together.
        limit: nats a token; engines in float32 differ by 1e-6, one in bfloat16 from a trainer in float32 by 0.03.
        old_policy, other_prompts, forbidden: see :func:`policy_hypotheses`.
        corrected: whether the run has importance weights (``rollouts.mismatch.correction``): a difference whose cause
            they make up for on every rank is then said and passes.

    Raises:
        MismatchError: the limit is exceeded.
    """
    rows = range(min(ROWS, len(tokens)))
    mask = tokens.select(rows).completion_mask
    sampler, trainer = (each[: len(rows), : mask.shape[1]] for each in (sampler_log_probs, trainer_log_probs))
    difference = _distance(sampler, trainer, mask)
    if all(each <= limit for each in ranks.gathered([difference])[0]):
        return difference
    windows = _worst_windows(sampler, trainer, mask)
    few, others = _excerpt(tokens, windows), None if other_prompts is None else _excerpt(other_prompts, windows)
    sampler, trainer = (_windowed(each, windows, few.completion_mask) for each in (sampler, trainer))
    with whole_parameters(policy), whole_parameters(old_policy):
        hypotheses = list(policy_hypotheses(policy, few, sampling, old_policy, others, forbidden))
    likely = _likeliest(sampler, trainer, few.completion_mask, hypotheses)
    all_found = ranks.gathered([(difference, likely.cause, likely.advice, likely.corrected)])[0]
    worst, cause, advice, _ = max(all_found)
    if corrected and all(found[0] <= limit or found[3] for found in all_found):
        log.warning(
            "engine and trainer differ by %.2g nats a token: %s, which rollouts.mismatch.correction corrects",
            worst,
            cause,
        )
        return difference
    raise MismatchError(worst, limit, cause, advice)


def _worst_windows(sampler: Tensor, trainer: Tensor, mask: Tensor) -> list[tuple[int, int]]:
    """(row, first token) of the windows of ``EXCERPT_TOKENS`` that differ most, in ``EXCERPT_ROWS`` rows."""
    differences = _differences(sampler, trainer, mask)
    sums = differences.unfold(1, min(EXCERPT_TOKENS, mask.shape[1]), 1).sum(-1)
    worst, starts = sums.max(1)
    rows = worst.topk(min(EXCERPT_ROWS, len(worst))).indices.tolist()
    return [(row, int(starts[row])) for row in rows]


def _excerpt(tokens: "TokenBatch", windows: list[tuple[int, int]]) -> "TokenBatch":
    """Windows as completions of their own; what comes before them is their prompt."""
    from app.policy.packing import build

    prompts, completions = [], []
    for row, start in windows:
        ids = tokens.input_ids[row][tokens.attention_mask[row].bool()].tolist()
        first = int(tokens.prompt_lengths[row]) + start
        prompts.append(ids[:first])
        completions.append(ids[first : first + EXCERPT_TOKENS])
    return build(prompts, completions, pad_id=0).to(tokens.input_ids.device)


def _windowed(log_probs: Tensor, windows: list[tuple[int, int]], mask: Tensor) -> Tensor:
    """[B, T] log-probs of an excerpt with this mask."""
    width = mask.shape[1]
    return torch.stack([log_probs[row, start : start + width] for row, start in windows])


def _differences(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """[B, T] |difference|, 0 where masked out; a token that one side holds impossible counts 20 nats."""
    return log_ratios(first, second, mask).abs().clamp(max=20)


def _distance(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Mean |difference| a token."""
    return float(_differences(first, second, mask).sum() / mask.sum())


def _likeliest(sampler: Tensor, trainer: Tensor, mask: Tensor, hypotheses: list[Hypothesis]) -> Hypothesis:
    difference = _distance(sampler, trainer, mask)
    exact = [hypothesis for hypothesis in hypotheses if not hypothesis.noise]
    left = [_distance(sampler, hypothesis.log_probs, mask) for hypothesis in exact]
    if exact and min(left) < EXPLAINED * difference:
        return exact[left.index(min(left))]
    for hypothesis in hypotheses:
        if hypothesis.noise and difference < _distance(trainer, hypothesis.log_probs, mask) / EXPLAINED:
            return hypothesis
    advice = "No setting that was tried explains it: compare the engine's model with the policy's."
    return Hypothesis("unknown", advice, trainer)


def policy_hypotheses(
    policy: "PreTrainedModel",
    tokens: "TokenBatch",
    sampling: SamplingSettings,
    old_policy: "PreTrainedModel | None" = None,
    other_prompts: "TokenBatch | None" = None,
    forbidden: Sequence[int] = (),
) -> Iterator[Hypothesis]:
    """What can go wrong between an engine and this policy, evaluated on ``tokens`` ([B, T] completions, few rows).

    Args:
        policy: the trainer's.
        tokens: prompts and completions as the trainer sees them.
        sampling: as the trainer thinks that the engine draws.
        old_policy: weights that the engine may still hold: those of the checkpoint before, or the reference's.
        other_prompts: the same completions after the prompts that another chat template makes.
        forbidden: ids that the engine never draws.
    """
    with torch.no_grad():
        logits = completion_logits(policy, tokens).float()
        yield from temperature_hypotheses(logits, tokens.completion_ids, sampling)
        yield from truncation_hypotheses(logits, tokens.completion_ids, sampling)
        if forbidden:
            yield _forbidden_hypothesis(logits, tokens.completion_ids, sampling, forbidden)
        yield _head_hypothesis(logits, bool(policy.config.tie_word_embeddings))
        if next(policy.parameters()).dtype == torch.float32:
            yield _precision_hypothesis(policy, tokens, sampling.temperature)
        if old_policy is not None:
            yield Hypothesis(
                "stale weights",
                "The engine's log-probs are those of older weights: is sync called before every rollout, and with "
                "the policy that trains?",
                token_log_probs(old_policy, tokens, sampling.temperature).log_probs,
            )
        if other_prompts is not None:
            yield Hypothesis(
                "chat template",
                "The engine's log-probs belong to prompts made by another template: build prompts once, as token ids.",
                token_log_probs(policy, other_prompts, sampling.temperature).log_probs,
            )


def temperature_hypotheses(logits: Tensor, ids: Tensor, sampling: SamplingSettings) -> Iterator[Hypothesis]:
    """The engine samples at another temperature: 1, or any on a fine grid."""
    for temperature in (1.0, *TEMPERATURES):
        if abs(math.log(temperature / sampling.temperature)) > 0.04:
            yield Hypothesis(
                "temperature",
                f"The engine's log-probs fit temperature {temperature:.2g}, the trainer uses {sampling.temperature:g}.",
                selective_log_softmax(logits, ids, temperature),
            )


def truncation_hypotheses(logits: Tensor, ids: Tensor, sampling: SamplingSettings) -> Iterator[Hypothesis]:
    """The engine's log-probs are of a truncated distribution, the trainer's of the whole one."""
    chosen = selective_log_softmax(logits, ids, sampling.temperature)
    rank = (logits > logits.gather(-1, ids[..., None])).sum(-1, keepdim=True)
    probabilities = (logits / sampling.temperature).softmax(-1).sort(dim=-1, descending=True).values
    for name, kept in _truncations(probabilities, sampling):
        mass = (probabilities * kept).sum(-1)
        possible = kept.gather(-1, rank)[..., 0]
        yield Hypothesis(
            "top-p/top-k",
            f"The engine's log-probs fit {name}, the trainer's are of the whole distribution: switch truncation off, "
            f"or {CORRECT}.",
            torch.where(possible, chosen - mass.log(), -torch.inf),
            corrected=True,
        )


def _truncations(probabilities: Tensor, sampling: SamplingSettings) -> Iterator[tuple[str, Tensor]]:
    """Kinds of truncation, and which of the falling ``probabilities`` [B, T, V] each keeps, one after the other."""
    before = probabilities.cumsum(-1) - probabilities
    for p in sorted({*TOP_PS, *([sampling.top_p] if sampling.top_p < 1 else [])}):
        yield f"top-p {p:g}", before < p
    ranks = torch.arange(probabilities.shape[-1], device=probabilities.device)
    for k in sorted({*TOP_KS, *([sampling.top_k] if sampling.top_k else [])}):
        yield f"top-k {k}", (ranks < k).expand_as(probabilities)
    if sampling.min_p > 0:
        yield f"min-p {sampling.min_p:g}", probabilities >= sampling.min_p * probabilities[..., :1]


def _forbidden_hypothesis(
    logits: Tensor, ids: Tensor, sampling: SamplingSettings, forbidden: Sequence[int]
) -> Hypothesis:
    left = logits.index_fill(-1, torch.tensor(forbidden, device=logits.device), -math.inf)
    return Hypothesis(
        "unknown tokens",
        "The policy gives ids that its tokenizer does not know a share of its probability, which the engine never "
        f"draws (rollouts.sampling.forbid_unknown_tokens): {CORRECT}.",
        selective_log_softmax(left, ids, sampling.temperature),
        corrected=True,
    )


def _head_hypothesis(logits: Tensor, tied: bool) -> Hypothesis:
    """A head without weights makes every token as likely as any other."""
    advice = "The engine draws all tokens alike: its output head does not hold the policy's weights"
    cause, more = ("tied head", ", which are tied to the embeddings.") if tied else ("stale weights", ".")
    uniform = torch.full(logits.shape[:2], -math.log(logits.shape[-1]), device=logits.device)
    return Hypothesis(cause, advice + more, uniform)


def _precision_hypothesis(policy: "PreTrainedModel", tokens: "TokenBatch", temperature: float) -> Hypothesis:
    """The policy with its products in bfloat16, which is no copy of it: a sharded one could not be copied."""
    with torch.autocast(tokens.input_ids.device.type, torch.bfloat16):
        rounded = token_log_probs(policy, tokens, temperature).log_probs
    return Hypothesis(
        "dtype",
        "The difference is that of rounding, the policy computes in float32: set engine.dtype to policy, or "
        f"{CORRECT}.",
        rounded,
        noise=True,
        corrected=True,
    )
