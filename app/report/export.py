"""What a report leaves besides its tables: the raw curves and measures as small CSV files."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.report.measures import NAMES, measure
from app.report.runs import Run, runs_of
from app.report.scheduling import State
from app.storage.durable import write_bytes

COLUMNS = ("task", "stage", "method", "warm_start", "seed", "rate")


def write_tables(state: State, folder: Path) -> None:
    """Writes ``reward.csv``, ``heldout.csv`` and ``tokens.csv`` (a run a line, a point of the curve a column) and
    ``measures.csv``, of every finished run of the sweeps and the comparison."""
    runs = [run for run in runs_of(state.plan) if run.stage != "warm_start" and run.name in state.finished]
    for curve, digits in (("reward", 4), ("heldout", 4), ("tokens", 0)):
        rows = [[*_about(state, run), *_rounded(_curve(state, run, curve), digits)] for run in runs]
        width = max((len(row) - len(COLUMNS) for row in rows), default=0)
        _write(folder / f"{curve}.csv", [[*COLUMNS, *map(str, range(1, width + 1))], *rows])
    _write(folder / "measures.csv", [[*COLUMNS, "start", *NAMES, "reached"], *_measures(state, runs)])


def _measures(state: State, runs: Sequence[Run]) -> Iterator[list[str]]:
    for run in runs:
        found = measure(state.finished[run.name]["curves"], state.plan.measures)
        values = _rounded([found.start, *(found.values[name] for name in NAMES)], 5)
        yield [*_about(state, run), *values, str(int(found.reached))]


def _about(state: State, run: Run) -> list[str]:
    rate = run.rate if run.stage == "sweep" else state.rate(run)
    words = [run.task, run.stage, run.method, str(run.warm_start), str(run.seed)]
    return [*words, "" if rate is None else f"{rate:g}"]


def _curve(state: State, run: Run, name: str) -> Sequence[float]:
    found: Sequence[float] = state.finished[run.name]["curves"][name]
    return found


def _rounded(values: Sequence[float], digits: int) -> list[str]:
    return [
        f"{round(value, digits):.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}" for value in values
    ]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_bytes(path, text.getvalue().encode())
