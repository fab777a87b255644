"""Several reward functions combined by weights, and their scores checked."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.errors import ConfigurationError
from app.rewards.checked import checked_scores
from app.rewards.correctness import CorrectnessReward
from app.rewards.reward import RewardFunction, RewardSample

NAMED = 3
"""Problems that a warning names at most."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedScores:
    """What the completions earn.

    Attributes:
        totals: N weighted sums; NaN where no reward function with a weight could score.
        columns: for each reward function its N unweighted scores; NaN where it could not score.
        verdicts: for each verdict reason its number of completions; empty where no function grades answers.
        counts: further metrics: grading processes lost so far.
    """

    totals: list[float]
    columns: dict[str, list[float]]
    verdicts: dict[str, int]
    counts: dict[str, float]


class WeightedRewards:
    """The weighted sum of several reward functions.

    Args:
        functions: at least one, with different names.
        weights: one for each of them, by default 1; with weight 0 a function is only logged.
    """

    def __init__(self, functions: Sequence[RewardFunction], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(functions) if weights is None else list(weights)
        names = [function.name for function in functions]
        if not functions or not any(weights):
            raise ConfigurationError("at least one reward function with a weight other than 0 is needed", "rewards")
        if len(weights) != len(functions):
            raise ConfigurationError(f"{len(weights)} weights for {len(functions)} rewards", key="reward_weights")
        if not all(math.isfinite(weight) for weight in weights):
            raise ConfigurationError(f"must be finite, got {weights}", key="reward_weights")
        if len(set(names)) != len(names):
            raise ConfigurationError(f"two reward functions have the same name: {', '.join(names)}", key="rewards")
        self.functions = list(functions)
        self.weights = dict(zip(names, weights, strict=True))
        self._unscored: set[str] = set()
        self._next_report = 1

    def __call__(self, samples: Sequence[RewardSample]) -> WeightedScores:
        """The scores of N samples; :class:`RewardError` names the function and the problem that failed."""
        scores = {function.name: checked_scores(function, samples) for function in self.functions}
        rows = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
        totals = [self._total(row) for row in rows]
        self._report_unscored(samples, totals)
        columns = {name: [math.nan if s is None else s for s in column] for name, column in scores.items()}
        return WeightedScores(totals, columns, *self._graded())

    def foresee(self, samples: Sequence[RewardSample]) -> None:
        """Tells the functions of samples that will be among those of the next call."""
        for function in self.functions:
            if isinstance(function, CorrectnessReward):
                function.foresee(samples)

    def _total(self, row: Mapping[str, float | None]) -> float:
        parts = [self.weights[name] * score for name, score in row.items() if score is not None and self.weights[name]]
        return math.fsum(parts) if parts else math.nan

    def _report_unscored(self, samples: Sequence[RewardSample], totals: Sequence[float]) -> None:
        """In words at the first problem, and whenever there are ten times as many as at the last report."""
        unscored = {s.problem.id: None for s, total in zip(samples, totals, strict=True) if math.isnan(total)}
        new = [problem for problem in unscored if problem not in self._unscored]
        self._unscored.update(unscored)
        if new and len(self._unscored) >= self._next_report:
            self._next_report = 10 * len(self._unscored)
            named = ", ".join(new[:NAMED]) + (f" and {len(new) - NAMED} more" if len(new) > NAMED else "")
            logger.warning(
                "no reward function can score the completions of %s; they teach nothing. Problems without a score so "
                "far: %d; completions/unscored shows their share",
                named,
                len(self._unscored),
            )

    def _graded(self) -> tuple[dict[str, int], dict[str, float]]:
        """Verdicts and counts of the function that grades answers, where there is one."""
        for function in self.functions:
            if isinstance(function, CorrectnessReward):
                return function.verdict_counts(), {"rollouts/grader/restarts": float(function.grader.restarts)}
        return {}, {}

    def close(self) -> None:
        """Frees what the functions hold, such as grading processes; safe to call again."""
        for function in self.functions:
            if isinstance(function, CorrectnessReward):
                function.close()
