"""A benchmark's scores as torchmetrics: every rank adds its problems, ``compute`` gives the scores of all.

The state is one value a problem with the problem's key, not a running sum: intervals are over problems, and a
problem that two ranks evaluated is found and counted once. Values are put into the order of their keys before
anything is computed, so that the result does not depend on how problems were spread over ranks or batches.

Shapes: P problems of one update, K samples a problem, N problems of the benchmark.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from app.evaluation.intervals import RESAMPLES, Interval, macro_interval, mean_interval, share_interval
from app.evaluation.results import BenchmarkScores
from app.evaluation.samples import Sample
from app.seeds import derive_seed

log = logging.getLogger(__name__)

NO_VOTE = -1


class ProblemMetric(Metric):
    """One value a problem; ``compute`` gives their mean as an :class:`Interval`.

    In a ``MetricCollection`` set ``compute_groups=False``: two of these that agree on the first batch would
    otherwise be taken for one.

    Args:
        seed: of the bootstrap.
        resamples: of the bootstrap.
        settings: torchmetrics' own (``process_group``, ``sync_on_compute`` …).
    """

    full_state_update = False
    is_differentiable = False
    is_share = True
    """Whether values lie between 0 and 1."""

    keys: list[Tensor] | Tensor
    scores: list[Tensor] | Tensor

    def __init__(self, seed: int = 0, resamples: int = RESAMPLES, **settings: Any) -> None:
        super().__init__(**settings)
        self.seed, self.resamples = seed, resamples
        self.add_state("keys", default=[], dist_reduce_fx="cat")
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def add(self, problem_ids: Sequence[str], scores_P: Tensor) -> None:
        """Takes up one score a problem, [P]."""
        if scores_P.shape != (len(problem_ids),):
            raise ValueError(f"{len(problem_ids)} problem ids for scores of shape {tuple(scores_P.shape)}")
        keys = [derive_seed("problem", each) for each in problem_ids]
        self._append(torch.tensor(keys, dtype=torch.int64), scores_P.detach())

    def _append(self, keys_P: Tensor, scores_P: Tensor) -> None:
        self.keys.append(keys_P.to(self.device))
        self.scores.append(scores_P.to(self.device, torch.float64))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics' own, which would send float32 for every state of a rank without problems."""
        if isinstance(self.keys, list) and not self.keys:
            self._append(torch.empty(0, dtype=torch.int64), torch.empty(0))
        super().sync(*args, **kwargs)

    def per_problem(self) -> Tensor:
        """The scores in the order of their problems' keys, [N] float64; a problem added twice counts once.

        Logs a warning where problems were added more than once; the first of them is kept.
        """
        if isinstance(self.keys, list) and not self.keys:
            return torch.empty(0, dtype=torch.float64)
        keys_N, order_N = dim_zero_cat(self.keys).sort(stable=True)
        first_N = torch.ones_like(keys_N, dtype=torch.bool)
        first_N[1:] = keys_N[1:] != keys_N[:-1]
        repeated = int((~first_N).sum())
        if repeated:
            log.warning("%d problems were evaluated more than once; each counts once", repeated)
        return dim_zero_cat(self.scores)[order_N][first_N]

    def compute(self) -> Interval:
        """The mean over all ranks' problems with its interval.

        Raises:
            ValueError: where no rank added a problem.
        """
        interval = share_interval if self.is_share else mean_interval
        return interval(self.per_problem(), self.seed, self.resamples)


class AverageAtK(ProblemMetric):
    """avg@k: the share of correct completions; with one greedy completion a problem, the accuracy."""

    higher_is_better = True

    def update(self, problem_ids: Sequence[str], correct: Tensor) -> None:
        """Adds P problems, ``correct`` [P, K]."""
        self.add(problem_ids, correct.double().mean(dim=1))


class PassAtK(ProblemMetric):
    """pass@k: the chance that at least one of k completions is correct, unbiased from n ≥ k samples.

    1 − C(n−c, k) / C(n, k) with c correct of n (Chen et al., arXiv 2107.03374, equation 1).
    """

    higher_is_better = True

    def __init__(self, k: int, **settings: Any) -> None:
        super().__init__(**settings)
        if k < 1:
            raise ValueError(f"pass@k needs k of at least 1, got {k}")
        self.k = k

    def update(self, problem_ids: Sequence[str], correct: Tensor) -> None:
        """Adds P problems, ``correct`` [P, n].

        Raises:
            ValueError: where there are fewer than k samples a problem.
        """
        n = correct.shape[1]
        if n < self.k:
            raise ValueError(f"pass@{self.k} needs at least {self.k} samples a problem, got {n}")
        # exact integers: one value for each possible number of correct samples
        chances = [1 - math.comb(n - c, self.k) / math.comb(n, self.k) for c in range(n + 1)]
        by_count = torch.tensor(chances, dtype=torch.float64, device=correct.device)
        self.add(problem_ids, by_count[correct.long().sum(dim=1)])


class MajorityAtK(ProblemMetric):
    """maj@k: whether the most frequent answer is correct, answers being equal where the grader says so.

    Completions without an answer have no vote; a problem without any vote counts 0. Where m answers tie for
    the first place the problem counts 1/m if one of them is correct: the expectation over a random choice.
    """

    higher_is_better = True

    def update(self, problem_ids: Sequence[str], clusters: Tensor, correct: Tensor) -> None:
        """Adds P problems.

        Args:
            problem_ids: P.
            clusters: [P, K] integers, equal within a row where answers are equal (:func:`cluster_answers`);
                ``NO_VOTE`` (−1) where a completion has no answer, and so is not correct.
            correct: [P, K].
        """
        votes_PK = (clusters[:, :, None] == clusters[:, None, :]).sum(dim=2) * (clusters != NO_VOTE)
        first_PK = votes_PK == votes_PK.amax(dim=1, keepdim=True)
        # answers that tie have equally many votes, so the share of votes is the share of answers
        share_P = (first_PK & correct.bool()).sum(dim=1) / first_PK.sum(dim=1).double()
        self.add(problem_ids, share_P)


class MeanLength(ProblemMetric):
    """Tokens a completion, the end token included."""

    is_share = False

    def update(self, problem_ids: Sequence[str], n_tokens: Tensor) -> None:
        """Adds P problems, ``n_tokens`` [P, K]."""
        self.add(problem_ids, n_tokens.double().mean(dim=1))


class TruncationRate(ProblemMetric):
    """The share of completions cut off at ``max_new_tokens``."""

    higher_is_better = False

    def update(self, problem_ids: Sequence[str], truncated: Tensor) -> None:
        """Adds P problems, ``truncated`` [P, K]: finish reason "length"."""
        self.add(problem_ids, truncated.double().mean(dim=1))


class VerdictRate(ProblemMetric):
    """The share of completions whose verdict has the given reason, such as "no_answer" or "timeout"."""

    higher_is_better = False

    def __init__(self, reason: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.reason = reason

    def update(self, problem_ids: Sequence[str], reasons: Sequence[Sequence[str]]) -> None:
        """Adds P problems, ``reasons`` P lists of K verdict reasons."""
        share = [[each == self.reason for each in row] for row in reasons]
        self.add(problem_ids, torch.tensor(share, dtype=torch.float64).mean(dim=1))


def cluster_answers(
    extracted: Sequence[str | None],
    correct: Sequence[bool],
    equal: Callable[[list[tuple[str, str]]], Sequence[bool]],
) -> list[int | None]:
    """Which of one problem's K answers are equal, for :class:`MajorityAtK`.

    Correct answers all equal the gold answer and so are one cluster; the others are compared with one
    representative of each cluster of wrong answers found before, identical strings only once.

    Args:
        extracted: K answers as the grader extracted them; None where there is none.
        correct: K.
        equal: the grader's equality, (answer, answer) pairs in and booleans out, in order.

    Returns:
        K cluster numbers: 0 for correct answers, 1, 2 … for wrong ones, None for no answer.
    """
    known: dict[str, int] = {}
    representatives: list[str] = []
    clusters: list[int | None] = []
    for answer, right in zip(extracted, correct, strict=True):
        if right or answer is None:
            clusters.append(0 if right else None)
            continue
        if answer not in known:
            same = list(equal([(each, answer) for each in representatives])) if representatives else []
            if True not in same:
                representatives.append(answer)
                same.append(True)
            known[answer] = same.index(True) + 1
        clusters.append(known[answer])
    return clusters


class SampleColumns(NamedTuple):
    """The samples of P problems as the metrics take them."""

    problem_ids: list[str]
    correct: Tensor
    clusters: Tensor
    n_tokens: Tensor
    truncated: Tensor
    reasons: list[list[str]]


def sample_columns(rows: Sequence[Sample], samples: int) -> SampleColumns:
    """Rows of whole problems, in any order → [P, K] columns with K = ``samples``.

    Raises:
        ValueError: where a problem has not exactly the samples 0 … K−1.
    """
    problems: dict[str, list[Sample]] = {}
    for row in rows:
        problems.setdefault(row.id, []).append(row)
    for key, group in problems.items():
        group.sort(key=lambda row: row.index)
        if [row.index for row in group] != list(range(samples)):
            found = [row.index for row in group]
            raise ValueError(f"problem {key!r} has samples {found}, expected 0 … {samples - 1}")
    groups = list(problems.values())

    def column(value: Callable[[Sample], int | None]) -> Tensor:
        cells = [[NO_VOTE if value(row) is None else value(row) for row in group] for group in groups]
        return torch.tensor(cells, dtype=torch.int64).reshape(-1, samples)

    return SampleColumns(
        problem_ids=list(problems),
        correct=column(lambda row: row.correct),
        clusters=column(lambda row: row.cluster),
        n_tokens=column(lambda row: row.n_tokens),
        truncated=column(lambda row: row.finish_reason == "length"),
        reasons=[[row.reason for row in group] for group in groups],
    )


def benchmark_metrics(
    samples: int, pass_k: Sequence[int] = (), seed: int = 0, resamples: int = RESAMPLES, **settings: Any
) -> MetricCollection:
    """All metrics of one benchmark, updated by ``update(**sample_columns(rows, samples)._asdict())``.

    Args:
        samples: completions a problem, K; maj@K is among the metrics where it is above 1.
        pass_k: each k gives a ``pass@k``.
        seed, resamples: of the bootstrap.
        settings: torchmetrics' own, for every metric.

    Returns:
        By name: ``accuracy`` (avg@K), ``pass@1`` …, ``maj@k`` (with k = K), ``mean_length``,
        ``truncation_rate``, ``no_answer_rate``, ``timeout_rate``, ``too_long_rate``,
        ``unparseable_gold_rate``.
    """
    settings |= {"seed": seed, "resamples": resamples}
    metrics: dict[str, Metric] = {"accuracy": AverageAtK(**settings)}
    metrics |= {f"pass@{k}": PassAtK(k, **settings) for k in pass_k}
    if samples > 1:
        metrics["maj@k"] = MajorityAtK(**settings)
    metrics |= {"mean_length": MeanLength(**settings), "truncation_rate": TruncationRate(**settings)}
    for reason in ("no_answer", "timeout", "too_long", "unparseable_gold"):
        metrics[f"{reason}_rate"] = VerdictRate(reason, **settings)
    return MetricCollection(metrics, compute_groups=False)


def summarise(
    rows: Sequence[Sample],
    samples: int,
    pass_k: Sequence[int] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> BenchmarkScores:
    """One benchmark's scores from its sample log alone; any one rank may call it.

    Args:
        rows: all samples of one benchmark, each problem's 0 … K−1, in any order.
        samples, pass_k, seed, resamples: see :func:`benchmark_metrics`.

    Raises:
        ValueError: where there are no rows, rows of several benchmarks, or a problem without all its samples.
    """
    names = {row.benchmark for row in rows}
    if len(names) != 1:
        raise ValueError(f"expected the rows of one benchmark, got {sorted(names) or 'none'}")
    # the rows are all there are, so the ranks have nothing to add
    metrics = benchmark_metrics(samples, pass_k, seed, resamples, sync_on_compute=False)
    metrics.update(**sample_columns(rows, samples)._asdict())
    return BenchmarkScores(
        name=names.pop(),
        problems=len({row.id for row in rows}),
        samples=samples,
        intervals=dict(metrics.compute()),
        values={name: tuple(metric.per_problem().tolist()) for name, metric in metrics.items()},
    )


def macro_average(scores: Sequence[BenchmarkScores], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """The unweighted mean over benchmarks of each metric that all of them have, with its interval.

    Raises:
        ValueError: where there are no scores.
    """
    if not scores:
        raise ValueError("an average over no benchmarks has no value")

    def interval(metric: str) -> Interval:
        values = {each.name: torch.tensor(each.values[metric], dtype=torch.float64) for each in scores}
        return macro_interval(values, seed, resamples)

    shared = [name for name in scores[0].values if all(name in each.values for each in scores)]
    return {metric: interval(metric) for metric in shared}
