"""``make report``: runs what a plan compares, and writes tables, pictures and raw curves.

A killed report goes on where it stood when the same command is given again. What is finished is reported, however much
is missing; ``--no_runs`` reports it without running anything.
"""

import argparse
import os
import sys
from pathlib import Path

from app.errors import ConfigurationError
from app.report.comparison import differences_of, outcomes_of
from app.report.export import write_tables
from app.report.plan import read_plan
from app.report.plots import draw
from app.report.runs import Run, runs_of
from app.report.scheduling import State, execute_all
from app.report.tables import report
from app.storage.durable import write_bytes
from app.storage.lock import FolderLock

FULL, SHORT = Path("configs/report/plans/full.yaml"), Path("configs/report/plans/short.yaml")


def main(arguments: list[str] | None = None) -> int:
    """0 where no run failed; 1 where one did, which the report names; 2 for a plan that cannot work."""
    options = _options(arguments)
    try:
        plan = read_plan(options.plan)
        state = State(plan, options.folder)
        if options.no_runs:  # also while another process goes on with them
            _look(state)
        else:
            with FolderLock(options.folder, "--folder", "a report"):
                _run(state, options.workers)
        _write(state, options.output or options.folder / "results")
    except ConfigurationError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 1 if state.failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.report", description=__doc__)
    parser.add_argument("--plan", type=Path, help=f"what is compared; {FULL} if not given")
    parser.add_argument("--short", action="store_true", help=f"{SHORT}: a minute, to see what a report looks like")
    parser.add_argument("--folder", type=Path, help="where runs are kept; runs/report/<name of the plan> if not given")
    parser.add_argument("--output", type=Path, help="where tables and pictures go; <folder>/results if not given")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--no_runs", action="store_true", help="report what is finished, and run nothing")
    options = parser.parse_args(arguments)
    if options.short and options.plan:
        parser.error("give --plan or --short")
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    options.plan = options.plan or (SHORT if options.short else FULL)
    options.folder = options.folder or Path("runs/report") / options.plan.stem
    return options


def _run(state: State, workers: int) -> None:
    runs = _look(state)
    if len(state.finished) < len(runs):
        execute_all(state, runs, workers, lambda line: print(line, flush=True))


def _look(state: State) -> list[Run]:
    """All planned runs, of which those that are finished are then known."""
    runs = runs_of(state.plan)
    state.look(runs)
    print(f"{len(state.finished)} of {len(runs)} planned runs are done in {state.folder}", flush=True)
    return runs


def _write(state: State, output: Path) -> None:
    outcomes = outcomes_of(state)
    differences = differences_of(state.plan, outcomes)
    write_bytes(output / "report.md", report(state, outcomes, differences).encode())
    write_tables(state, output)
    pictures = ", ".join(path.name for path in draw(state, differences, output))
    print(f"{output / 'report.md'}; raw curves in CSV beside it; {pictures}")


if __name__ == "__main__":
    sys.exit(main())
