"""Completions that have ended are decoded, and their grading begins, while others are still generated."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from app.data.problems import PromptBatch
from app.engines.engine import Completion, Ended
from app.policy.decoding import decode_completions
from app.rewards.reward import RewardSample
from app.rewards.weighted import WeightedRewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EarlyGrading:
    """What the engine of one call hands its completions to.

    It changes when work is done and never what comes of it: rewards are asked once for all completions, as ever.

    Args:
        batches: whose problems, one after another, are the requests of the call.
        tokenizer: for decoding.
        end_token_ids: ids that end a completion.
        max_new_tokens: the limit of a completion.
        rewards: are told of the samples.
    """

    def __init__(
        self,
        batches: Sequence[PromptBatch],
        tokenizer: "PreTrainedTokenizerBase",
        end_token_ids: Sequence[int],
        max_new_tokens: int,
        rewards: WeightedRewards,
    ) -> None:
        self.tokenizer, self.end_token_ids, self.rewards = tokenizer, end_token_ids, rewards
        self.max_new_tokens = max_new_tokens
        self._requests = [(problem, batch.thinking) for batch in batches for problem in batch.problems]
        self._texts: dict[tuple[int, int], str] = {}

    def __call__(self, ended: Sequence[Ended]) -> None:
        """For :attr:`app.engines.engine.RolloutEngine.on_ended`. After an engine's restart it hears of them again."""
        samples = []
        for (request, index, row), text in zip(ended, self._decoded([row for *_, row in ended]), strict=True):
            self._texts[request, index] = text
            samples.append(self.sample(request, row, text))
        self.rewards.foresee(samples)

    def sample(self, request: int, row: Completion, text: str) -> RewardSample:
        """What the reward functions see of a completion."""
        problem, thinking = self._requests[request]
        return RewardSample(problem, text, len(row.token_ids), row.finish_reason, self.max_new_tokens, thinking)

    def samples(self, first: int, groups: Sequence[Sequence[Completion]]) -> list[RewardSample]:
        """Those of all completions of the requests from number ``first`` on, group by group."""
        places = [(first + number, index) for number, group in enumerate(groups) for index in range(len(group))]
        rows = dict(zip(places, chain.from_iterable(groups), strict=True))
        late = [place for place in places if place not in self._texts]
        self._texts.update(zip(late, self._decoded([rows[place] for place in late]), strict=True))
        return [self.sample(place[0], rows[place], self._texts[place]) for place in places]

    def _decoded(self, rows: Sequence[Completion]) -> list[str]:
        return decode_completions(self.tokenizer, [row.token_ids for row in rows], self.end_token_ids)
