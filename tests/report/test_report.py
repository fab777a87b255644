"""A whole report with real runs: killed, resumed, and read again."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.report.__main__ import SHORT, main
from app.report.plan import read_plan
from app.report.runs import Run, runs_of
from app.report.scheduling import State
from app.report.worker import LOG, Request, execute, read_result
from app.storage.lock import FolderLock
from tests.command_line import ROOT, environment

REWARD = {"class_path": "ImportedReward", "init_args": {"path": "tests.running:digit_share"}}


@dataclass(frozen=True)
class Done:
    """A report that was killed once and then went on."""

    plan: Path
    folder: Path
    before: dict[str, int]  # results at the kill → when they were written
    said: str

    def state(self) -> State:
        state = State(read_plan(self.plan), self.folder)
        state.look(runs_of(state.plan))
        return state

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / "results" / name).open(newline="") as file:
            return list(csv.DictReader(file))


def shorter(folder: Path) -> Path:
    """The short plan with fewer iterations, and a reward that a policy earns which has learned nothing."""
    values: dict[str, Any] = yaml.safe_load(SHORT.read_text(encoding="utf-8"))
    task = values["tasks"]["late"]
    task["warm_start_options"] |= {"data.iterations": 2, "trainer.val_check_interval": 2}
    task["options"] |= {"data.iterations": 3, "trainer.val_check_interval": 2, "rollouts.rewards": [REWARD]}
    values["resamples"] = 1000
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def results(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("result.json")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    base = tmp_path_factory.mktemp("report")
    plan, folder = shorter(base), base / "runs"
    words = ["--plan", str(plan), "--folder", str(folder), "--workers", "1"]
    command = [sys.executable, "-m", "app.report", *words]
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("[3 of 7]"):
            break
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    before = results(folder)
    finished = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return Done(plan, folder, before, finished.stdout)


@pytest.mark.slow
def test_a_killed_report_goes_on_where_it_stood(done: Done) -> None:
    assert len(done.before) in (3, 4)
    assert done.said.startswith(f"{len(done.before)} of 7 planned runs are done")
    assert {path: when for path, when in results(done.folder).items() if path in done.before} == done.before
    assert len(results(done.folder)) == 7


@pytest.mark.slow
def test_a_run_gives_the_same_alone_as_after_others_in_one_process(done: Done, tmp_path: Path) -> None:
    state = done.state()
    last = runs_of(state.plan)[-1]
    request = state.request(last)
    words = [word.replace(str(done.folder / last.name), str(tmp_path)) for word in request.arguments]
    assert execute(Request(str(tmp_path), words, "alone", request.curves)) == 0
    alone, after_others = read_result(tmp_path)["curves"], state.finished[last.name]["curves"]
    assert alone == after_others
    assert len(set(alone["reward"])) > 1  # it is not that nothing happens


@pytest.mark.slow
def test_pairs_start_from_equal_policies_and_differ_by_the_method(done: Done) -> None:
    curves = {(each["method"], each["seed"]): each for each in done.rows("reward.csv") if each["stage"] == "run"}
    assert len(curves) == 4
    for seed in ("1001", "1002"):
        grpo, trace = curves["grpo", seed], curves["trace_recent", seed]
        assert grpo["rate"] == trace["rate"]
        assert grpo["1"] == trace["1"]  # sampled before any update
        assert grpo["3"] != trace["3"]
    assert curves["grpo", "1001"]["1"] != curves["grpo", "1002"]["1"]


@pytest.mark.slow
def test_the_tables_hold_what_the_curves_say(done: Done) -> None:
    page = (done.folder / "results/report.md").read_text(encoding="utf-8")
    assert "All planned runs are done." in page
    assert page.endswith("## Missing runs\n\nNone.\n")
    rewards = {(each["method"], each["seed"]): [float(each[str(i)]) for i in (1, 2, 3)]
               for each in done.rows("reward.csv") if each["stage"] == "run"}  # fmt: skip
    areas = {key: sum(row) / 3 for key, row in rewards.items()}
    gain = sum(areas["trace_recent", seed] - areas["grpo", seed] for seed in ("1001", "1002")) / 2
    row = next(line for line in page.splitlines() if line.startswith("| trace_recent | grpo |")).split(" | ")
    assert float(row[3].split()[0]) == pytest.approx(gain, abs=2e-3)
    measured = {(each["method"], each["seed"]): each for each in done.rows("measures.csv") if each["stage"] == "run"}
    for key, area in areas.items():
        assert float(measured[key]["area"]) == pytest.approx(area, abs=1e-4)
    for name in ("curves.png", "differences.png"):
        assert (done.folder / "results" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_is_missing_is_named_in_the_tables(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "late/runs/trace_recent/seed-1002"
    kept = (done.folder / name / "result.json").read_bytes()
    (done.folder / name / "result.json").unlink()
    (done.folder / name / "failure.json").write_text(json.dumps({"line": "exit code 1, tried 2 times: it broke"}))
    words = ["--plan", str(done.plan), "--folder", str(done.folder), "--output", str(tmp_path), "--no_runs"]
    with FolderLock(done.folder, "--folder", "a report"):  # as a report that is still running
        assert main(words) == 1
        assert main([*words[:-1], "--workers", "1"]) == 2
    assert "is writing a report there" in capsys.readouterr().err
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    (done.folder / name / "failure.json").unlink()
    (done.folder / name / "result.json").write_bytes(kept)
    assert "**6 of 7 planned runs are done**; 1 failed." in page
    assert f"- {name}: exit code 1, tried 2 times: it broke" in page
    assert "| trace_recent | grpo | 1 of 2 |" in page


def test_a_run_in_a_process_of_its_own_ends_with_its_own_line(tmp_path: Path) -> None:
    assert execute(Request(str(tmp_path), ["fitt"], "x", {}, own=True)) == 2
    assert (tmp_path / LOG).read_text() == "error: no command fitt; there are fit, validate\n"


def test_a_curve_that_is_not_logged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    from app.report import worker

    def run(arguments: list[str]) -> int:
        with SummaryWriter(str(tmp_path / "run" / "version_0")) as writer:
            writer.add_scalar("reward", 0.5, 0)
        return 0

    monkeypatch.setattr(worker, "_in_process", run)
    assert execute(Request(str(tmp_path), [], "x", {"reward": "reward"})) == 0
    assert read_result(tmp_path)["curves"] == {"reward": [0.5]}
    assert execute(Request(str(tmp_path), [], "y", {"heldout": "eval/held/accuracy"})) == 2
    assert "the run has logged no curve eval/held/accuracy; there are reward" in (tmp_path / LOG).read_text()
    assert not (tmp_path / "result.json").exists()


def test_a_run_is_named_by_its_place(tmp_path: Path) -> None:
    assert Run("sweep", "t", 1, 2, "m", 1e-4).name == "t/sweep/m/rate-0.0001/seed-2"
    assert Run("warm_start", "t", 3, 3).name == "t/warm-start/3"
