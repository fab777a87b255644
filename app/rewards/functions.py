"""Reward functions: what a completion earns. Several are combined by weights.

A reward function is any object with a ``name`` that maps samples to as many scores; None says that it cannot score a
sample. Classes here are constructed from a configuration file (``class_path`` and ``init_args``).
"""

import importlib
import inspect
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.data.problems import Problem
from app.errors import ConfigurationError, closest
from app.rewards.answers import boxed_answers, strip_thinking
from app.rewards.grading import REASONS, Grader, Verdict

logger = logging.getLogger(__name__)
Scores = list[float | None]


@dataclass(frozen=True)
class RewardSample:
    """One completion as reward functions see it.

    Attributes:
        problem: the problem with its gold answer and its row's further columns.
        completion: the generated text, without special tokens.
        n_tokens: generated tokens, the end token included.
        finish_reason: "stop", or "length" where ``max_new_tokens`` cut it off.
        max_new_tokens: the limit it was generated under.
    """

    problem: Problem
    completion: str
    n_tokens: int
    finish_reason: str
    max_new_tokens: int


@runtime_checkable
class RewardFunction(Protocol):
    """Scores samples. ``name`` labels its metrics: ``rewards/<name>/mean``."""

    name: str

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        """One score a sample, in order; None where it cannot be scored."""
        ...


class RewardError(RuntimeError):
    """A reward function failed or returned something other than scores."""


class CorrectnessReward:
    """1 for a correct answer, 0 for any other; see :mod:`app.rewards.grading`.

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
        rows = [(sample.problem.answer, sample.completion, sample.problem.extra) for sample in samples]
        self.last_verdicts = self.grader.grade(rows)
        unreadable = "unparseable_gold"
        return [None if v.reason == unreadable else float(v.correct) for v in self.last_verdicts]

    def verdict_counts(self) -> dict[str, int]:
        """How many verdicts of the last call had each reason; 0 for those that did not occur, so that curves have no
        gaps."""
        found = Counter(verdict.reason for verdict in self.last_verdicts)
        return {reason: found[reason] for reason in REASONS}

    def close(self) -> None:
        """Ends the grading processes."""
        self.grader.close()


class FormatReward:
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
        boxes = boxed_answers(strip_thinking(sample.completion))
        return len(boxes) == 1 and bool(boxes[0].strip())


_ONE_THOUGHT = re.compile(r"\s*(?:<think>)?(?:(?!</?think>).)*</think>(?:(?!</?think>).)*", re.DOTALL)


class OverlongPenalty:
    """DAPO's soft punishment of length (arXiv 2503.14476, eq. 13): 0 up to ``max_new_tokens − buffer_tokens``, from
    there in a straight line to −1 at ``max_new_tokens``.

    Args:
        buffer_tokens: the length over which the penalty grows.
    """

    name = "overlong"

    def __init__(self, buffer_tokens: int) -> None:
        if buffer_tokens < 1:
            raise ConfigurationError(f"must be at least 1, got {buffer_tokens}", key="buffer_tokens")
        self.buffer_tokens = buffer_tokens

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return [self._penalty(sample) for sample in samples]

    def _penalty(self, sample: RewardSample) -> float:
        if self.buffer_tokens > sample.max_new_tokens:
            limit = f"max_new_tokens={sample.max_new_tokens}"
            raise ConfigurationError(f"must be at most {limit}, got {self.buffer_tokens}", key="buffer_tokens")
        excess = sample.n_tokens - (sample.max_new_tokens - self.buffer_tokens)
        return -min(max(excess / self.buffer_tokens, 0.0), 1.0)


class ImportedReward:
    """A function of the user's own, by import path.

    Its signature is ``function(samples: Sequence[RewardSample]) -> Sequence[float | None]``: one score a sample, in
    order, None where it cannot score.

    Args:
        path: ``package.module:function``.
        name: of its metrics; by default the function's name.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        self.function = _import_function(path)
        self.path = path
        self.name = name or path.partition(":")[2]

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return list(self.function(samples))


def _import_function(path: str) -> Callable[[Sequence[RewardSample]], Sequence[float | None]]:
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise ConfigurationError(f"must have the form package.module:function, got {path!r}", key="path")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(f"cannot import {module_name!r} of {path!r}: {error}", key="path") from error
    function = getattr(module, name, None)
    if function is None:
        near = closest(name, dir(module))
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigurationError(f"{module_name!r} has no {name!r}{hint}", key="path")
    if not callable(function):
        raise ConfigurationError(f"{path!r} is a {type(function).__name__}, not a function", key="path")
    try:
        inspect.signature(function).bind([])
    except TypeError as error:
        raise ConfigurationError(f"{path!r} must take one argument, the samples: {error}", key="path") from error
    return function


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
        self._reported: set[str] = set()

    def __call__(self, samples: Sequence[RewardSample]) -> WeightedScores:
        """The scores of N samples; :class:`RewardError` names the function and the problem that failed."""
        scores = {function.name: _checked_scores(function, samples) for function in self.functions}
        rows = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
        totals = [self._total(row) for row in rows]
        self._report_unscored(samples, totals)
        columns = {name: [math.nan if s is None else s for s in column] for name, column in scores.items()}
        return WeightedScores(totals, columns, *self._graded())

    def _total(self, row: Mapping[str, float | None]) -> float:
        parts = [self.weights[name] * score for name, score in row.items() if score is not None and self.weights[name]]
        return math.fsum(parts) if parts else math.nan

    def _report_unscored(self, samples: Sequence[RewardSample], totals: Sequence[float]) -> None:
        unscored = {s.problem.id for s, total in zip(samples, totals, strict=True) if math.isnan(total)}
        new = sorted(unscored - self._reported)
        if new:
            logger.warning("no reward function can score the completions of: %s", ", ".join(new))
            self._reported |= unscored

    def _graded(self) -> tuple[dict[str, int], dict[str, float]]:
        """Verdicts and counts of the function that grades answers, where there is one."""
        for function in self.functions:
            if isinstance(function, CorrectnessReward):
                return function.verdict_counts(), {"grader/restarts": float(function.grader.restarts)}
        return {}, {}

    def close(self) -> None:
        """Frees what the functions hold, such as grading processes; safe to call again."""
        for function in self.functions:
            if isinstance(function, CorrectnessReward):
                function.close()


def _checked_scores(function: RewardFunction, samples: Sequence[RewardSample]) -> Scores:
    try:
        scores = list(function(samples))
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        culprit = _first_failure(function, samples)
        raise RewardError(f"reward {function.name!r} failed{culprit}: {type(error).__name__}: {error}") from error
    if len(scores) != len(samples):
        raise RewardError(f"reward {function.name!r} returned {len(scores)} scores for {len(samples)} samples")
    return [_checked_score(function, *pair) for pair in zip(samples, scores, strict=True)]


def _checked_score(function: RewardFunction, sample: RewardSample, score: object) -> float | None:
    if score is None:
        return None
    # numpy and torch scalars are numbers by __float__; strings have none
    if not hasattr(score, "__float__") or not math.isfinite(value := float(score)):
        where = f"for problem {sample.problem.id!r}"
        raise RewardError(f"reward {function.name!r} returned {score!r} {where}: a finite number or None is needed")
    return value


def _first_failure(function: RewardFunction, samples: Sequence[RewardSample]) -> str:
    """Which sample alone makes the function fail, in words."""
    for sample in samples:
        try:
            function([sample])
        except (Exception, SystemExit):  # noqa: BLE001  the failure itself is being reported
            return f" for problem {sample.problem.id!r}"
    return " for a batch, though for none of its samples alone"
