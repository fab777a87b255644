"""The runs of a plan, in the order in which they are worth having: each with its folder, its needs and its command."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.report.plan import GROUPS, Plan

WEIGHTS = "hf"
"""The folder of a warm start's exported policy, below the run's."""
SEEDS_APART = 1000


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        stage: "warm_start", "sweep" or "run".
        task: its name in the plan.
        warm_start: its number, from 1.
        seed: of everything in the run.
        method: its name in the plan; empty for a warm start.
        rate: the learning rate that a sweep tries.
        needs: names of the runs that come before.
    """

    stage: str
    task: str
    warm_start: int
    seed: int
    method: str = ""
    rate: float | None = None
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's folder, below the report's."""
        if self.stage == "warm_start":
            return f"{self.task}/warm-start/{self.warm_start}"
        if self.stage == "sweep":
            return f"{self.task}/sweep/{self.method}/rate-{self.rate:g}/seed-{self.seed}"
        return f"{self.task}/runs/{self.method}/seed-{self.seed}"


def seed_of(warm_start: int, index: int) -> int:
    """The seed of a warm start's ``index``-th run, from 1: more warm starts or seeds leave the others' as they are."""
    return SEEDS_APART * warm_start + index


def runs_of(plan: Plan) -> list[Run]:
    """Every run of ``plan``: the main comparison over all warm starts and seeds first, then the controls."""
    found: dict[str, Run] = {}
    first = [_warm_start(name, 1) for name, task in plan.tasks.items() if task.warm_start]
    for group in GROUPS:
        for run in (*first, *_sweeps(plan, group), *_comparison(plan, group)):
            found.setdefault(run.name, run)
    return list(found.values())


def _warm_start(task: str, number: int) -> Run:
    return Run("warm_start", task, number, seed=number)


def _needed(plan: Plan, task: str, number: int) -> tuple[str, ...]:
    return (_warm_start(task, number).name,) if plan.tasks[task].warm_start else ()


def _sweeps(plan: Plan, group: str) -> Iterator[Run]:
    if plan.sweep is None:
        return
    swept = [name for name, method in plan.methods.items() if method.group == group and method.rate_of is None]
    for seed in range(1, plan.sweep.seeds + 1):
        for rate in plan.sweep.rates:
            for method in swept:
                for task in plan.tasks:
                    yield Run("sweep", task, 1, seed, method, rate, _needed(plan, task, 1))


def _comparison(plan: Plan, group: str) -> Iterator[Run]:
    methods = [name for name, method in plan.methods.items() if method.group == group]
    for index in range(1, plan.seeds + 1):
        for number in range(1, plan.warm_starts + 1):
            for task in plan.tasks:
                if _needed(plan, task, number):
                    yield _warm_start(task, number)
                for method in (each for each in methods if index <= plan.seeds_of(each)):
                    yield _run(plan, task, method, number, index)


def _run(plan: Plan, task: str, method: str, number: int, index: int) -> Run:
    swept = [name for names in sweep_names(plan, task, plan.sweeper_of(method)).values() for name in names]
    return Run("run", task, number, seed_of(number, index), method, needs=(*_needed(plan, task, number), *swept))


def sweep_names(plan: Plan, task: str, method: str) -> dict[float, list[str]]:
    """Rate → names of the runs that try it for ``method``; nothing without a sweep."""
    if plan.sweep is None:
        return {}
    seeds = range(1, plan.sweep.seeds + 1)
    return {rate: [Run("sweep", task, 1, seed, method, rate).name for seed in seeds] for rate in plan.sweep.rates}


def arguments(run: Run, plan: Plan, folder: Path, rate: float | None) -> list[str]:
    """What follows ``main.py`` in the run's command.

    Args:
        folder: of the report.
        rate: the learning rate that the sweep has chosen, for a run of the comparison.
    """
    task = plan.tasks[run.task]
    options: dict[str, Any] = {
        "seed_everything": run.seed,
        "name": "run",
        "trainer.default_root_dir": folder / run.name,
    }
    if run.stage == "warm_start":
        options |= {"export.folder": folder / run.name / WEIGHTS, **task.warm_start_options}
    else:
        options |= {"model.policy.path": policy(run, plan, folder), **task.options, **plan.methods[run.method].options}
        rate = run.rate if run.stage == "sweep" else rate
    if plan.sweep is not None and rate is not None:
        options[plan.sweep.key] = rate
    files = task.warm_start if run.stage == "warm_start" else task.fit
    stacked = [word for file in files for word in ("--config", file)]
    return ["fit", *stacked, *(word for key, value in options.items() for word in (f"--{key}", _spelt(value)))]


def policy(run: Run, plan: Plan, folder: Path) -> str:
    """Where the policy that ``run`` starts from lies."""
    ready = plan.tasks[run.task].policies
    return ready[run.warm_start - 1] if ready else str(folder / _warm_start(run.task, run.warm_start).name / WEIGHTS)


def identity(run: Run, plan: Plan, rate: float | None, before: Mapping[str, str]) -> str:
    """A digest of all that decides what the run does: contents of its files, its options, its warm start's own digest.

    Args:
        before: name → digest, of the runs that come before, those of warm starts at least.
    """
    task = plan.tasks[run.task]
    files = task.warm_start if run.stage == "warm_start" else task.fit
    command = arguments(run, plan, Path(), rate)
    contents = [Path(file).read_text(encoding="utf-8") for file in files]
    start = [before[name] for name in run.needs if "/warm-start/" in name]
    return hashlib.sha256(json.dumps([command, contents, start]).encode()).hexdigest()[:16]


def _spelt(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)
