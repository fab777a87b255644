"""The reward for an answer in the form that was asked for."""

import re
from collections.abc import Sequence

from app.grading.answers import boxed_answers, strip_thinking
from app.rewards.reward import RewardFunction, RewardSample, Scores


class FormatReward(RewardFunction):
    """1 for a completion that ended by itself with exactly one box outside thinking, otherwise 0.

    Args:
        thinking: the completion must also begin with one thought, closed by ``</think>``, and the box follow it. The
            opening tag may stand in the prompt.
    """

    name = "format"

    def __init__(self, thinking: bool = False) -> None:
        self.thinking = thinking

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return [float(self._well_formed(sample)) for sample in samples]

    def _well_formed(self, sample: RewardSample) -> bool:
        if sample.finish_reason != "stop":
            return False
        if self.thinking and not _ONE_THOUGHT.fullmatch(sample.completion):
            return False
        return len(boxed_answers(strip_thinking(sample.completion))) == 1


_ONE_THOUGHT = re.compile(r"\s*(?:<think>)?(?:(?!</?think>).)*</think>(?:(?!</?think>).)*", re.DOTALL)
