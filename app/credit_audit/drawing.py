"""Draws what an audit is made of: completions of some problems, and fresh continuations of their prefixes, graded."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from app.credit_audit.plan import AuditPlan, cut_positions
from app.data.problems import PromptBatch
from app.engines.engine import Completion, FinishReason, GenerationRequest, SamplingSettings
from app.engines.stop_strings import StopStrings
from app.rollout.collection import decode_groups, reward_samples, trained_rewards
from app.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from app.rewards.weighted import WeightedRewards

Generate = Callable[[Sequence[GenerationRequest]], list[list[Completion]]]
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class AuditedCompletion:
    """One sampled completion and what was found at its cuts.

    Attributes:
        token_ids: of the completion, the end token included.
        reward: what it earned.
        finish_reason: "stop", or "length" where the limit cut it off.
        cuts: positions of the cuts, 0 first; prefix j has ``cuts[j]`` tokens.
        continued: for each cut the rewards of fresh continuations of its prefix: k, and where c completions of the
            problem begin with the same prefix (all of them with the empty one), the c·k that they share.
    """

    token_ids: list[int]
    reward: float
    finish_reason: FinishReason
    cuts: list[int]
    continued: list[list[float]]

    @property
    def rewards(self) -> list[float]:
        """Its own and those of all continuations."""
        return [self.reward, *chain.from_iterable(self.continued)]


@dataclass(frozen=True)
class AuditedProblem:
    """One problem of an audit.

    Attributes:
        id: the problem's.
        prompt_ids: its prompt.
        completions: G of them.
        tokens: generated for it, continuations included.
        continuations: drawn for it.
    """

    id: str
    prompt_ids: list[int]
    completions: list[AuditedCompletion]
    tokens: int
    continuations: int

    @property
    def known(self) -> bool:
        """Whether every completion and continuation has a reward: NaN is of one that no reward function could score,
        or that was drawn from a policy that overflows."""
        return not any(math.isnan(reward) for row in self.completions for reward in row.rewards)


@dataclass(frozen=True)
class AuditDraw:
    """How an audit draws and grades.

    Attributes:
        plan: how much.
        sampling: the distribution that values are expectations over; its ``max_new_tokens`` is the limit of a whole
            completion, prefix included.
        generate: the engine's, with the policy's weights. It is called twice, on every rank alike.
        rewards: what grades.
        tokenizer: for decoding.
        end_token_ids: ids that end a completion.
        seed: of sampling; what is drawn for a prefix depends on (seed, the problem's id, the prefix) alone.
        truncation_penalty: taken off the reward of what the limit cut off.
    """

    plan: AuditPlan
    sampling: SamplingSettings
    generate: Generate
    rewards: "WeightedRewards"
    tokenizer: "PreTrainedTokenizerBase"
    end_token_ids: tuple[int, ...]
    seed: int
    truncation_penalty: float = 0.0

    def sample(self, batch: PromptBatch) -> list[list[Completion]]:
        """G completions of each prompt."""
        places = range(len(batch.problems))
        return self.generate([self._request(batch, place, "sample", (), self.plan.completions) for place in places])

    def continue_all(self, batch: PromptBatch, groups: list[list[Completion]], every: int) -> list[AuditedProblem]:
        """Continues all prefixes of ``groups``, cut every ``every`` tokens, and grades them and the completions."""
        wanted = [_prefixes(group, every) for group in groups]
        requests = [
            self._request(batch, place, "continue", prefix, self.plan.continuations * shared)
            for place, prefixes in enumerate(wanted)
            for prefix, shared in prefixes.items()
        ]
        drawn = iter(self.generate(requests))
        continued = [{prefix: self._joined(prefix, next(drawn)) for prefix in prefixes} for prefixes in wanted]
        rows = [[*group, *chain.from_iterable(own.values())] for group, own in zip(groups, continued, strict=True)]
        rewards = iter(self._grade(batch, rows))
        return [
            _audited(batch, place, group, continued[place], every, [next(rewards) for _ in rows[place]])
            for place, group in enumerate(groups)
        ]

    def _request(self, batch: PromptBatch, place: int, purpose: str, prefix: Prefix, n: int) -> GenerationRequest:
        seed = derive_seed(self.seed, "audit", purpose, batch.problems[place].id, *prefix)
        sampling = replace(self.sampling, max_new_tokens=self.sampling.max_new_tokens - len(prefix))
        return GenerationRequest([*batch.prompt_ids[place], *prefix], n, seed, sampling, self.end_token_ids)

    def _joined(self, prefix: Prefix, continuations: Sequence[Completion]) -> list[Completion]:
        """Whole completions. A stop string that begins in the prefix is seen here alone: it ends them, too."""
        rows = [replace(row, token_ids=[*prefix, *row.token_ids]) for row in continuations]
        if not (self.sampling.stop_strings and prefix):
            return rows
        ends = StopStrings(self.tokenizer, self.sampling.stop_strings).first_ends(
            [row.token_ids for row in rows], len(prefix)
        )
        return [
            row if end is None else replace(row, token_ids=row.token_ids[:end], finish_reason="stop")
            for row, end in zip(rows, ends, strict=True)
        ]

    def _grade(self, batch: PromptBatch, groups: list[list[Completion]]) -> list[float]:
        """Rewards as an update would learn from, group by group; NaN where there is none."""
        texts = decode_groups(self.tokenizer, groups, self.end_token_ids)
        graded = self.rewards(reward_samples(batch, groups, texts, self.sampling.max_new_tokens))
        rows = [row for group in groups for row in group]
        rewards = trained_rewards(graded.totals, rows, self.truncation_penalty)
        return [reward if row.finite else math.nan for reward, row in zip(rewards, rows, strict=True)]


def _prefixes(group: Sequence[Completion], every: int) -> Counter[Prefix]:
    """The prefixes at the cuts of a problem's completions, and how many of these share each of them."""
    ids = [row.token_ids for row in group]
    return Counter(tuple(row[:cut]) for row in ids for cut in cut_positions(len(row), every))


def _audited(
    batch: PromptBatch,
    place: int,
    group: Sequence[Completion],
    continued: dict[Prefix, list[Completion]],
    every: int,
    rewards: list[float],
) -> AuditedProblem:
    """Puts one problem's ``rewards``, of its completions and then of its continuations, where they belong."""
    left = iter(rewards)
    own = [next(left) for _ in group]
    values = {prefix: [next(left) for _ in rows] for prefix, rows in continued.items()}
    completions = []
    for row, reward in zip(group, own, strict=True):
        cuts = cut_positions(len(row.token_ids), every)
        found = [values[tuple(row.token_ids[:cut])] for cut in cuts]
        completions.append(AuditedCompletion(row.token_ids, reward, row.finish_reason, cuts, found))
    drawn = sum(len(row.token_ids) - len(prefix) for prefix, rows in continued.items() for row in rows)
    return AuditedProblem(
        id=batch.problems[place].id,
        prompt_ids=batch.prompt_ids[place],
        completions=completions,
        tokens=drawn + sum(len(row.token_ids) for row in group),
        continuations=sum(map(len, continued.values())),
    )
