"""From finished runs to differences: each method against the one it is compared with, seed by seed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.evaluation.intervals import Interval
from app.report.measures import NAMES, Measured, measure
from app.report.plan import GROUPS, Plan
from app.report.runs import Run, runs_of
from app.report.scheduling import State
from app.report.statistics import holm, interval_of, mean_of
from app.seeds import derive_seed

PRIMARY = "area"


@dataclass(frozen=True)
class Outcome:
    """What the runs of one method on one task showed.

    Attributes:
        warm_starts: warm start → seed → what was measured, of the finished runs.
        planned: number of runs.
    """

    warm_starts: Mapping[int, Mapping[int, Measured]]
    planned: int

    @property
    def runs(self) -> list[Measured]:
        """The finished ones."""
        return [run for seeds in self.warm_starts.values() for run in seeds.values()]

    def mean(self, name: str) -> float:
        """Of a measure over the finished runs."""
        return sum(run.values[name] for run in self.runs) / len(self.runs)

    @property
    def reached(self) -> int:
        """How many of them came to the accuracy."""
        return sum(run.reached for run in self.runs)


@dataclass(frozen=True)
class Difference:
    """A method minus the one it is compared with, in one measure.

    Attributes:
        absolute: with its interval.
        relative: to the other's value; None where that is not above 0.
        above_start: relative to the other's value above the policy's before any update; for the area alone, and None
            where that is not above 0.
        p_value: of the absolute difference, before any correction.
        corrected: after Holm's, over the group's comparisons on all tasks in this measure.
        pairs, planned: number of pairs.
        ahead: pairs in which the method's value was the larger.
    """

    absolute: Interval
    relative: Interval | None
    above_start: Interval | None
    p_value: float
    corrected: float
    pairs: int
    planned: int
    ahead: int


Key = tuple[str, str, str]
"""(task, method, measure)."""


def outcomes_of(state: State) -> dict[tuple[str, str], Outcome]:
    """(task, method) → what its runs showed, whether finished or not."""
    runs = [run for run in runs_of(state.plan) if run.stage == "run"]
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.task, run.method), []).append(run)
    return {key: _outcome(state, own) for key, own in found.items()}


def _outcome(state: State, runs: list[Run]) -> Outcome:
    warm_starts: dict[int, dict[int, Measured]] = {}
    for run in runs:
        if run.name in state.finished:
            curves = state.finished[run.name]["curves"]
            warm_starts.setdefault(run.warm_start, {})[run.seed] = measure(curves, state.plan.measures)
    return Outcome(warm_starts, len(runs))


def differences_of(plan: Plan, outcomes: Mapping[tuple[str, str], Outcome]) -> dict[Key, Difference]:
    """Every planned comparison of which there is a pair, with Holm's correction over each group."""
    found: dict[Key, Difference] = {}
    for group in GROUPS:
        for name in NAMES:
            family = {(task, method): _pairs(plan, outcomes, task, method, name)
                      for task in plan.tasks for method in plan.group(group)}  # fmt: skip
            raw = {key: _difference(plan, key, name, pairs) for key, pairs in family.items() if pairs}
            corrected = holm({"/".join(key): each.p_value for key, each in raw.items()})
            for key, each in raw.items():
                found[(*key, name)] = replace(each, corrected=corrected["/".join(key)])
    return found


def _pairs(plan: Plan, outcomes: Mapping[tuple[str, str], Outcome], task: str, method: str, name: str) -> list[Tensor]:
    """For each warm start its pairs [S_w, 3]: the method's value, the other's, and the policy's before any update."""
    other = plan.methods[method].against or ""
    mine, theirs = outcomes[task, method].warm_starts, outcomes[task, other].warm_starts
    found = []
    for number, seeds in mine.items():
        both = [(run, theirs[number][seed]) for seed, run in seeds.items() if seed in theirs.get(number, {})]
        if both:
            rows = [[run.values[name], against.values[name], against.start] for run, against in both]
            found.append(torch.tensor(rows, dtype=torch.float64))
    return found


def _difference(plan: Plan, key: tuple[str, str], name: str, pairs: list[Tensor]) -> Difference:
    seed = derive_seed("report", *key, name)
    absolute, p_value = interval_of(pairs, lambda m: m[..., 0] - m[..., 1], seed, plan.resamples)
    relative, above = None, None
    _, other, start = mean_of(pairs).tolist()
    if other > 0:
        relative, _ = interval_of(pairs, lambda m: m[..., 0] / m[..., 1] - 1, seed, plan.resamples)
    if name == PRIMARY and other > start:
        form = lambda m: (m[..., 0] - m[..., 1]) / (m[..., 1] - m[..., 2])  # noqa: E731
        above, _ = interval_of(pairs, form, seed, plan.resamples)
    rows = torch.cat(pairs)
    ahead = int((rows[:, 0] > rows[:, 1]).sum())
    planned = plan.warm_starts * min(plan.seeds_of(key[1]), plan.seeds_of(plan.methods[key[1]].against or ""))
    return Difference(absolute, relative, above, p_value, 1.0, len(rows), planned, ahead)
