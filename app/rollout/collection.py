"""From prompts to graded completions: requests, generation, decoding, rewards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from app.data.problems import PromptBatch
from app.engines.engine import Completion, GenerationRequest, RolloutEngine, SamplingSettings
from app.errors import require, require_choice
from app.policy.decoding import count_unknown, decode_completions
from app.rewards.reward import RewardSample
from app.rewards.weighted import WeightedRewards
from app.rollout.early_grading import EarlyGrading
from app.rollout.experience import Rollout
from app.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRUNCATED = ("keep", "mask", "penalise")


@dataclass(frozen=True)
class TruncationSettings:
    """What becomes of completions that ``max_new_tokens`` cut off.

    Attributes:
        mode: "keep" them, "mask" them out of the loss (their reward still counts in the group's mean), or "penalise"
            their reward by ``penalty``.
        penalty: taken off the reward of a truncated completion under "penalise": "reward" and its spread are logged
            with it, ``rewards/<name>/mean`` without.
    """

    mode: str = "keep"
    penalty: float = 1.0

    def __post_init__(self) -> None:
        require_choice(self.mode, TRUNCATED, "rollouts.truncation.mode")
        require(self.penalty >= 0, "must be at least 0", self.penalty, "rollouts.truncation.penalty")

    @property
    def taken_off(self) -> float:
        """What a truncated completion's reward loses."""
        return self.penalty if self.mode == "penalise" else 0.0

    def loss_mask(self, completion_mask: torch.Tensor, rows: Sequence[Completion]) -> torch.Tensor:
        """[B, T]: the tokens of B ``rows`` that the loss counts, out of those of ``completion_mask``."""
        if self.mode != "mask":
            return completion_mask
        cut = torch.tensor([row.finish_reason == "length" for row in rows], device=completion_mask.device)
        return completion_mask & ~cut[:, None]


def rollout_requests(
    batch: PromptBatch,
    group_size: int,
    sampling: SamplingSettings,
    end_token_ids: tuple[int, ...],
    seed: int,
    extra_round: int = 0,
) -> list[GenerationRequest]:
    """One request a prompt; its seed depends on (seed, iteration, position in the global batch, extra round) alone,
    so that neither a resumed run nor another number of ranks draws other samples."""
    places = [(batch.iteration, batch.first_index + index, extra_round) for index in range(len(batch.prompt_ids))]
    return [
        GenerationRequest(ids, group_size, derive_seed(seed, "rollout", *place), sampling, end_token_ids)
        for ids, place in zip(batch.prompt_ids, places, strict=True)
    ]


def decode_groups(
    tokenizer: "PreTrainedTokenizerBase", groups: Sequence[Sequence[Completion]], end_token_ids: Sequence[int]
) -> list[str]:
    """The texts of all completions, group by group; see :func:`decode_completions`."""
    ids = [completion.token_ids for group in groups for completion in group]
    return decode_completions(tokenizer, ids, end_token_ids)


def reward_samples(
    batch: PromptBatch, groups: Sequence[Sequence[Completion]], texts: Sequence[str], max_new_tokens: int
) -> list[RewardSample]:
    """What the reward functions see of each completion, group by group."""
    rows = [(problem, row) for problem, group in zip(batch.problems, groups, strict=True) for row in group]
    return [
        RewardSample(problem, text, len(row.token_ids), row.finish_reason, max_new_tokens, batch.thinking)
        for (problem, row), text in zip(rows, texts, strict=True)
    ]


def trained_rewards(scores: Sequence[float], rows: Sequence[Completion], truncation_penalty: float) -> list[float]:
    """What the update learns from: a truncated completion's score less the penalty.

    They are float32 numbers, as the update's are: where two differ in the last bits of a sum alone, the group is tied
    for metrics and dynamic sampling too.
    """
    cut = torch.tensor([row.finish_reason == "length" for row in rows], dtype=torch.float64)
    return (torch.tensor(scores, dtype=torch.float64) - truncation_penalty * cut).float().tolist()


class RolloutCollector:
    """Generates and grades the completions of several iterations' prompts at once.

    Args:
        engine: what generates.
        rewards: what grades.
        group_size: G, completions a prompt.
        sampling: how completions are drawn.
        seed: of sampling.
        truncation_penalty: taken off the reward of a completion that ``max_new_tokens`` cut off.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        rewards: WeightedRewards,
        group_size: int,
        sampling: SamplingSettings,
        seed: int,
        truncation_penalty: float = 0.0,
    ) -> None:
        self.engine = engine
        self.rewards = rewards
        self.group_size = group_size
        self.sampling = sampling
        self.seed = seed
        self.truncation_penalty = truncation_penalty

    def through(self, engine: RolloutEngine) -> "RolloutCollector":
        """The same with another engine."""
        given = (self.rewards, self.group_size, self.sampling, self.seed, self.truncation_penalty)
        return RolloutCollector(engine, *given)

    def collect(
        self,
        batches: Sequence[PromptBatch],
        tokenizer: "PreTrainedTokenizerBase",
        end_token_ids: tuple[int, ...],
        extra_round: int = 0,
    ) -> list[Rollout]:
        """One graded rollout a batch; all are generated in one call of the engine, with the weights it holds.

        Args:
            batches: the first is that of the current iteration.
            tokenizer: for decoding.
            end_token_ids: ids that end a completion.
            extra_round: of dynamic sampling; each draws with seeds of its own.
        """
        started = time.perf_counter()
        settings = (self.group_size, self.sampling, end_token_ids, self.seed, extra_round)
        requests = [request for batch in batches for request in rollout_requests(batch, *settings)]
        early = EarlyGrading(batches, tokenizer, end_token_ids, self.sampling.max_new_tokens, self.rewards)
        groups = self._generate(requests, early)
        seconds = (time.perf_counter() - started) / len(batches)
        rollouts, first = [], 0
        for batch in batches:
            own = groups[first : first + len(batch.problems)]
            rollouts.append(self._grade(batch, own, early, first, batches[0].iteration, seconds))
            first += len(own)
        return rollouts

    def _generate(self, requests: Sequence[GenerationRequest], early: EarlyGrading) -> list[list[Completion]]:
        self.engine.on_ended = early
        try:
            return self.engine.generate(requests)
        finally:
            self.engine.on_ended = None

    def _grade(
        self,
        batch: PromptBatch,
        groups: list[list[Completion]],
        early: EarlyGrading,
        first: int,
        weights_iteration: int,
        generate_seconds: float,
    ) -> Rollout:
        started = time.perf_counter()
        samples = early.samples(first, groups)
        graded = self.rewards(samples)
        rows = [row for group in groups for row in group]
        rewards = trained_rewards(graded.totals, rows, self.truncation_penalty)
        unknown = count_unknown(early.tokenizer, [row.token_ids for row in rows])
        seconds = {"generate": generate_seconds, "grade": time.perf_counter() - started}
        return Rollout(
            batch,
            groups,
            [sample.completion for sample in samples],
            rewards,
            graded.columns,
            weights_iteration,
            generated_tokens=sum(len(row.token_ids) for row in rows),
            generated_completions=len(rows),
            seconds=seconds,
            verdicts=graded.verdicts,
            counts=graded.counts | {"completions/unknown_tokens": float(unknown)},
        )
