"""What is run, in which order, how often, and what is said of failures. Real runs: test_report.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.report import scheduling
from app.report.plan import Measures, Method, Plan, Sweep, Task
from app.report.runs import runs_of
from app.report.scheduling import State, chosen_rate, execute_all
from app.report.worker import Request, is_finished

FILE = "configs/quickstart/grpo_lambda.yaml"
PLAN = Plan(
    tasks={"t": Task(fit=[FILE], warm_start=[FILE])},
    methods={"a": Method({}), "b": Method({}, against="a")},
    measures=Measures(accuracy=0.5),
    sweep=Sweep([0.1, 0.2], seeds=1),
    warm_starts=2,
    seeds=2,
)


class Played:
    """In the place of a worker process: leaves what a run leaves, with exit codes that the test says."""

    def __init__(self, folder: Path, codes: Callable[[str, int], int], areas: Callable[[str], float]) -> None:
        self.folder, self.codes, self.areas = folder, codes, areas
        self.calls: list[str] = []

    def __call__(self) -> "Played":
        return self

    def execute(self, request: Request) -> int:
        folder = Path(request.folder)
        if is_finished(folder, request.identity):
            return 0
        name = str(folder.relative_to(self.folder))
        self.calls.append(name)
        code = self.codes(name, self.calls.count(name))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.log").write_text(f"a line\nerror: {name} broke\n")
        if code == 0:
            area = self.areas(name)
            curves = {"reward": [area, area], "heldout": [area], "tokens": [1.0, 2.0]}
            (folder / "result.json").write_text(json.dumps({"identity": request.identity, "curves": curves}))
        return code

    def close(self, at_once: bool) -> None:
        pass


def played(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: Callable[[str, int], int] = lambda name, attempt: 0,
    areas: Callable[[str], float] = lambda name: 0.5,
) -> tuple[State, list[str], list[str]]:
    worker, said = Played(folder, codes, areas), list[str]()
    monkeypatch.setattr(scheduling, "Worker", worker)
    state, runs = State(PLAN, folder), runs_of(PLAN)
    state.look(runs)
    execute_all(state, runs, 1, said.append)
    return state, worker.calls, said


def test_every_run_is_executed_once_after_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, calls, said = played(tmp_path, monkeypatch)
    assert calls == [run.name for run in runs_of(PLAN)]
    assert len(state.finished) == len(calls) == 2 + 4 + 8
    assert said[-1].startswith("[14 of 14] ")


def test_what_is_finished_is_not_run_again_unless_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(tmp_path, monkeypatch)
    (tmp_path / "t/runs/b/seed-1002/result.json").unlink()
    assert played(tmp_path, monkeypatch)[1] == ["t/runs/b/seed-1002"]
    # another warm start is another run of all that start from it
    result = tmp_path / "t/warm-start/2/result.json"
    result.write_text(json.dumps({"identity": "another", "curves": {}}))
    assert played(tmp_path, monkeypatch)[1] == ["t/warm-start/2"]  # the same one again: its own runs stand
    assert played(tmp_path, monkeypatch)[1] == []


def test_the_sweep_decides_the_rate_and_another_rate_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _, _ = played(tmp_path, monkeypatch, areas=lambda name: 0.9 if "b/rate-0.2" in name else 0.5)
    rates = {run.method: state.rate(run) for run in runs_of(PLAN) if run.stage == "run"}
    assert rates == {"a": 0.1, "b": 0.2}
    (tmp_path / "t/sweep/b/rate-0.2/seed-1/result.json").unlink()
    calls = played(tmp_path, monkeypatch)[1]
    assert calls == ["t/sweep/b/rate-0.2/seed-1", *(f"t/runs/b/seed-{seed}" for seed in (1001, 2001, 1002, 2002))]


def test_a_run_that_fails_is_repeated_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def codes(name: str, attempt: int) -> int:
        broken = name == "t/runs/b/seed-2001" or (name == "t/runs/a/seed-1001" and attempt == 1)
        return int(broken)

    state, calls, said = played(tmp_path, monkeypatch, codes)
    assert calls.count("t/runs/a/seed-1001") == calls.count("t/runs/b/seed-2001") == 2
    line = "exit code 1, tried 2 times: error: t/runs/b/seed-2001 broke"
    assert state.failed == {"t/runs/b/seed-2001": line}
    assert any(line in each for each in said)
    assert "t/runs/a/seed-1001" in state.finished
    fresh = State(PLAN, tmp_path)
    fresh.look(runs_of(PLAN))
    assert fresh.failed == state.failed
    assert played(tmp_path, monkeypatch)[0].failed == {}  # tried again by the next command


def test_runs_whose_warm_start_failed_are_named_and_the_others_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _, said = played(tmp_path, monkeypatch, lambda name, attempt: int(name == "t/warm-start/2"))
    lost = {name for name in state.failed if "/runs/" in name}
    assert lost == {f"t/runs/{method}/seed-{seed}" for method in "ab" for seed in (2001, 2002)}
    assert state.failed["t/runs/a/seed-2001"] == "needs t/warm-start/2, which failed"
    assert "left out: 4 runs that need t/warm-start/2, which failed" in said
    assert len(state.finished) == 14 - 1 - 4


def test_a_rate_that_fails_is_not_chosen_and_a_sweep_without_one_ends_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ("t/sweep/a/rate-0.1/seed-1", "t/sweep/b/rate-0.1/seed-1", "t/sweep/b/rate-0.2/seed-1")
    state, _, _ = played(tmp_path, monkeypatch, lambda name, attempt: int(name in broken))
    runs = {run.name: run for run in runs_of(PLAN)}
    assert state.rate(runs["t/runs/a/seed-1001"]) == 0.2
    assert state.failed["t/runs/b/seed-1001"] == "needs a rate of the sweep of b, which failed"
    assert sum("/runs/a/" in name for name in state.finished) == 4


def test_a_configuration_that_cannot_work_ends_the_report_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"^t/warm-start/1 broke \(the run t/warm-start/1\)$"):
        played(tmp_path, monkeypatch, lambda name, attempt: 2)


def test_the_rate_with_the_largest_area_is_chosen_and_the_lower_of_two_that_tie() -> None:
    assert chosen_rate({0.1: 0.3, 0.2: 0.5, 0.4: 0.4}) == 0.2
    assert chosen_rate({0.4: 0.5, 0.2: 0.5}) == 0.2
