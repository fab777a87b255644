"""The reward for a correct answer."""

from collections import Counter
from collections.abc import Sequence

from app.grading.grader import REASONS, Grader, Item, Verdict
from app.rewards.reward import RewardFunction, RewardSample, Scores


class CorrectnessReward(RewardFunction):
    """1 for a correct answer, 0 for any other; see :mod:`app.grading.grader`.

    An answer that is missing, too long or beyond the time limit is wrong. A gold answer that cannot be read scores
    nothing (None), whatever the completion says.

    Attributes:
        last_verdicts: the verdicts of the last call, in the order of its samples.

    Args:
        workers: grading processes.
        timeout_s: wall limit of one verdict, in seconds.
    """

    name = "correctness"

    def __init__(self, workers: int = 2, timeout_s: float = 1.5) -> None:
        self.grader = Grader(workers, timeout_s)
        self.last_verdicts: list[Verdict] = []

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        self.last_verdicts = self.grader.grade(_items(samples))
        unreadable = "unparseable_gold"
        return [None if v.reason == unreadable else float(v.correct) for v in self.last_verdicts]

    def foresee(self, samples: Sequence[RewardSample]) -> None:
        """The grading processes begin with ``samples``, which will be among those of the next call."""
        self.grader.foresee(_items(samples))

    def verdict_counts(self) -> dict[str, int]:
        """How many verdicts of the last call had each reason; 0 for those that did not occur, so that curves have no
        gaps."""
        found = Counter(verdict.reason for verdict in self.last_verdicts)
        return {reason: found[reason] for reason in REASONS}

    def close(self) -> None:
        """Ends the grading processes."""
        self.grader.close()


def _items(samples: Sequence[RewardSample]) -> list[Item]:
    return [(sample.problem.answer, sample.visible, sample.problem.extra) for sample in samples]
