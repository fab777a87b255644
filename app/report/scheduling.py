"""Spreads the runs of a plan over worker processes; a killed report goes on where it stood."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from app.errors import ConfigurationError
from app.report.plan import Plan
from app.report.runs import Run, arguments, identity, sweep_names
from app.report.worker import LOG, Request, is_finished, read_result
from app.storage.durable import write_bytes

ATTEMPTS = 2
FAILURE = "failure.json"
_CONFIGURATION = 2
"""The exit code of a run whose configuration cannot work: to repeat it would be in vain."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class State:
    """What is known of the runs of a plan.

    Attributes:
        finished: name → result.
        failed: name → the last line of what went wrong, of runs that failed each time they were tried.
        identities: name → digest, of runs all of whose needs are finished.
    """

    plan: Plan
    folder: Path
    finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)

    def is_ready(self, run: Run) -> bool:
        """Whether all that ``run`` needs is finished; of a sweep, a rate that fails is one not to choose."""
        settled = all(name in self.finished or (_is_sweep(name) and name in self.failed) for name in run.needs)
        return settled and self.lost(run) is None

    def lost(self, run: Run) -> str | None:
        """What failed so that ``run`` can never start: its warm start, or each rate of its sweep; None for nothing."""
        swept = [name for name in run.needs if _is_sweep(name)]
        settled = all(name in self.finished or name in self.failed for name in swept)
        if swept and settled and not sweep_areas(self, run.task, self.plan.sweeper_of(run.method)):
            return f"a rate of the sweep of {self.plan.sweeper_of(run.method)}"
        return next((name for name in run.needs if name in self.failed and not _is_sweep(name)), None)

    def rate(self, run: Run) -> float | None:
        """The learning rate that the sweep has chosen for ``run``: that with the largest mean area."""
        if run.stage != "run" or self.plan.sweep is None:
            return None
        return chosen_rate(sweep_areas(self, run.task, self.plan.sweeper_of(run.method)))

    def request(self, run: Run) -> Request:
        """What a worker is told of ``run``, which is ready."""
        rate = self.rate(run)
        digest = identity(run, self.plan, rate, self.identities)
        self.identities[run.name] = digest
        measures = self.plan.measures
        curves = {"reward": measures.reward, "heldout": measures.heldout, "tokens": measures.tokens}
        words = arguments(run, self.plan, self.folder, rate)
        wanted = {} if run.stage == "warm_start" else curves
        return Request(str(self.folder / run.name), words, digest, wanted, self.plan.process == "own")

    def look(self, runs: Sequence[Run]) -> None:
        """Finds what is finished on the disk, and what has failed."""
        for run in runs:
            place = self.folder / run.name
            if self.is_ready(run) and is_finished(place, self.request(run).identity):
                self.finished[run.name] = read_result(place)
            elif (place / FAILURE).is_file():
                self.failed[run.name] = json.loads((place / FAILURE).read_bytes())["line"]
            elif (lost := self.lost(run)) is not None:
                self.failed[run.name] = f"needs {lost}, which failed"


def _is_sweep(name: str) -> bool:
    return "/sweep/" in name


def sweep_areas(state: State, task: str, method: str) -> dict[float, float]:
    """Rate → mean area under the train reward over the sweep's seeds, of rates all of whose runs are finished."""
    areas: dict[float, float] = {}
    for rate, runs in sweep_names(state.plan, task, method).items():
        if all(name in state.finished for name in runs):
            areas[rate] = fmean(area_of(state.finished[name]) for name in runs)
    return areas


def area_of(result: Mapping[str, Any]) -> float:
    """The area under the train reward of a finished run: its mean."""
    return fmean(result["curves"]["reward"])


def chosen_rate(areas: Mapping[float, float]) -> float:
    """The rate with the largest area; the lower one of two that tie."""
    return max(sorted(areas), key=lambda rate: areas[rate])


class Worker:
    """One process of :mod:`app.report.worker`, started when it is first needed and anew after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def execute(self, request: Request) -> int:
        """The exit code of the run; that of the process where the run has taken it along."""
        if self._closed:
            return 1
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(asdict(request)), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return int(json.loads(answer)["code"])
        return process.wait() or 1

    def close(self, at_once: bool) -> None:
        """Ends the process: after its run, or at once."""
        self._closed = True
        if self._process is not None and self._process.stdin is not None:
            if at_once:
                self._process.kill()
            self._process.stdin.close()
            self._process.wait()


def _start() -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "app.report.worker"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def execute_all(state: State, runs: Sequence[Run], workers: int, say: Callable[[str], None]) -> None:
    """Executes what is not finished, in the order of ``runs`` as far as their needs allow, and fills in ``state``.

    Raises:
        ConfigurationError: a run's configuration cannot work, in the words of the run.
    """
    state.failed.clear()  # what failed before is tried again
    idle = [Worker() for _ in range(workers)]
    every, at_once = list(idle), True
    waiting = [run for run in runs if run.name not in state.finished]
    busy: dict[Future[tuple[int, int]], tuple[Run, Worker]] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or busy:
                _pass_over_lost(state, waiting, say)
                while idle and (run := next((each for each in waiting if state.is_ready(each)), None)):
                    waiting.remove(run)
                    worker, request = idle.pop(), state.request(run)
                    busy[pool.submit(_attempts, worker, request)] = (run, worker)
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    run, worker = busy.pop(future)
                    idle.append(worker)
                    _settle(state, run, *future.result())
                    say(f"[{len(state.finished)} of {len(runs)}] {run.name}{_ending(state, run)}")
            at_once = False
        finally:
            for worker in every:
                worker.close(at_once)


def _attempts(worker: Worker, request: Request) -> tuple[int, int]:
    """The last exit code, and how often the run was tried."""
    attempts, code = 0, 1
    while code not in (0, _CONFIGURATION) and attempts < ATTEMPTS:
        attempts, code = attempts + 1, worker.execute(request)
    return code, attempts


def _settle(state: State, run: Run, code: int, attempts: int) -> None:
    place = state.folder / run.name
    if code == 0:
        state.finished[run.name] = read_result(place)
        (place / FAILURE).unlink(missing_ok=True)
        return
    line = _last_line(place / LOG)
    if code == _CONFIGURATION:
        raise ConfigurationError(f"{line.removeprefix('error: ')} (the run {run.name})")
    state.failed[run.name] = f"exit code {code}, tried {attempts} times: {line}"
    write_bytes(place / FAILURE, json.dumps({"line": state.failed[run.name]}).encode())


def _pass_over_lost(state: State, waiting: list[Run], say: Callable[[str], None]) -> None:
    """Takes out the runs that can never start. The page of the report names each."""
    lost = {run.name: state.lost(run) for run in waiting if state.lost(run) is not None}
    waiting[:] = [run for run in waiting if run.name not in lost]
    for name, cause in lost.items():
        state.failed[name] = f"needs {cause}, which failed"
    for cause in sorted({cause for cause in lost.values() if cause}):
        say(f"left out: {sum(each == cause for each in lost.values())} runs that need {cause}, which failed")


def _ending(state: State, run: Run) -> str:
    return f": FAILED, {state.failed[run.name]}" if run.name in state.failed else ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "no output"
