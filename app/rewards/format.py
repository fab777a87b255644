"""The reward for an answer in the form that was asked for."""

from collections.abc import Sequence

from app.grading.answers import boxed_answers
from app.rewards.reward import RewardFunction, RewardSample, Scores


class FormatReward(RewardFunction):
    """1 for a completion that ended by itself with exactly one box outside thinking, otherwise 0.

    Args:
        thinking: the completion must also begin with one thought, which is closed, and the box follow it. Its opening
            marker may stand in the prompt; see :data:`app.grading.thinking.KNOWN_MARKERS` for those that count.
    """

    name = "format"

    def __init__(self, thinking: bool = False) -> None:
        self.thinking = thinking

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return [float(self._well_formed(sample)) for sample in samples]

    def _well_formed(self, sample: RewardSample) -> bool:
        if sample.finish_reason != "stop":
            return False
        read = sample.thinking.read(sample.completion)
        if self.thinking and not read.is_one_thought_first:
            return False
        boxes = boxed_answers(read.visible)
        return len(boxes) == 1 and bool(boxes[0].strip())
