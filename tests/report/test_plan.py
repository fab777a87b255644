"""Plan files: what they say, and one line for what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import ConfigurationError
from app.report.__main__ import FULL, SHORT, main
from app.report.plan import read_plan
from app.report.runs import arguments, identity, runs_of

GOOD: dict[str, Any] = {
    "tasks": {"t": {"fit": ["configs/quickstart/grpo_lambda.yaml"], "policies": ["one", "two"]}},
    "warm_starts": 2,
    "seeds": 2,
    "measures": {"accuracy": 0.5},
    "methods": {"a": {"options": {}}, "b": {"options": {"model.objective.lam": 0.9}, "against": "a"}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 3}, "seed: no such key; did you mean seeds?"),
        ({"seeds": 0}, "seeds: must be at least 1, got 0"),
        ({"seeds": "two"}, "seeds: must be a whole number, got two"),
        ({"warm_starts": 3}, "tasks.t.policies: needs one path for each of the 3 warm starts, got 2"),
        ({"measures": {}}, "measures.accuracy: is missing"),
        ({"methods": {"b": {"options": {}, "against": "aa"}}}, "methods.b.against: unknown name 'aa'"),
        ({"methods": {"b": {"options": {}, "against": "b"}}}, "methods.b.against: must be another method"),
        ({"methods": {"b": {"options": {}, "group": "mian"}}}, "did you mean 'main'?"),
        ({"methods": {"b": {"options": {}, "seeds": 3}}}, "methods.b.seeds: must lie between 1 and the plan's 2"),
        ({"methods": {"b": {"options": ["x"]}}}, "methods.b.options: must be a mapping of keys to values"),
        ({"tasks": {"t": {"fit": ["nowhere.yaml"], "policies": ["a", "b"]}}}, "there is no file nowhere.yaml"),
        ({"tasks": {"t": {"fit": ["README.md"]}}}, "tasks.t: give either warm_start (files) or policies (paths)"),
        ({"tasks": {}}, "tasks: needs at least one task"),
        ({"sweep": {"rates": []}}, "sweep.rates: needs at least one rate"),
        ({"sweep": {"rates": ["fast"]}}, "sweep.rates.0: must be a number, got fast"),
        ({"process": "mine"}, "process: unknown name 'mine'"),
    ],
)
def test_a_mistake_is_one_line(
    changes: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", str(written(tmp_path, **changes)), "--folder", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.startswith("error: ")
    assert said.endswith("plan.yaml)\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_rates_may_be_written_as_yaml_reads_no_number(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, sweep={"rates": ["1e-3", 2]}))
    assert plan.sweep is not None
    assert plan.sweep.rates == [0.001, 2.0]


def test_the_full_plan_compares_what_it_promises() -> None:
    plan = read_plan(FULL)
    runs = runs_of(plan)
    pairs = {(run.task, run.method): set() for run in runs if run.stage == "run"}
    for run in runs:
        if run.stage == "run":
            pairs[run.task, run.method].add((run.warm_start, run.seed))
    for task in plan.tasks:
        for method, settings in plan.methods.items():
            seeds = pairs[task, method]
            assert len(seeds) >= 8
            assert len({start for start, _ in seeds}) >= 4
            assert len({seed for _, seed in seeds}) == len(seeds)  # no two warm starts share a seed
            assert settings.against is None or seeds <= pairs[task, settings.against]
    assert len({run.name for run in runs}) == len(runs)


def test_runs_come_after_what_they_need_and_the_main_comparison_before_the_controls() -> None:
    plan = read_plan(FULL)
    runs = runs_of(plan)
    places = {run.name: place for place, run in enumerate(runs)}
    assert all(places[name] < place for place, run in enumerate(runs) for name in run.needs)
    groups = [plan.methods[run.method].group for run in runs if run.stage == "run"]
    assert groups == sorted(groups, reverse=True)  # main, then control


def test_ready_policies_and_options_reach_the_command(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    run = next(each for each in runs_of(plan) if each.method == "b" and each.warm_start == 2)
    words = arguments(run, plan, tmp_path, rate=None)
    assert words[:3] == ["fit", "--config", "configs/quickstart/grpo_lambda.yaml"]
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given["--model.policy.path"] == "two"
    assert given["--model.objective.lam"] == "0.9"
    assert given["--seed_everything"] == "2001"
    assert "--model.optimizer.lr" not in given


def test_what_decides_a_run_changes_its_digest_and_nothing_else_does(tmp_path: Path) -> None:
    plan = read_plan(SHORT)
    runs = [run for run in runs_of(plan) if run.stage == "run"]
    start = {"late/warm-start/1": "x"}
    digests = {identity(run, plan, rate, start) for run in runs for rate in (1e-4, 2e-4)}
    assert len(digests) == 2 * len(runs)
    assert identity(runs[0], plan, 1e-4, {"late/warm-start/1": "y"}) not in digests
    longer = read_plan(SHORT)
    longer.methods["more"] = longer.methods["grpo"]
    assert identity(runs[0], longer, 1e-4, start) in digests


def test_an_unreadable_plan_is_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no file configs/report/plans/ful\.yaml.*did you mean"):
        read_plan(Path("configs/report/plans/ful.yaml"))
