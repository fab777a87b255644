"""Prints how much of the benchmarks stands in a training set.

    python benchmarks/data_overlap.py --folder DATA --train dapo17k math12k

Both sides are names of the registry (`app.data.registry`); without `--folder` they come from the hub.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.data.overlap import BenchmarkIndex, overlap_table
from app.data.problems import Problem
from app.data.sources import RegisteredSource
from app.errors import ConfigurationError

BENCHMARKS = ("aime24", "amc23", "amc", "math500", "olympiadbench", "minerva")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one table a training set; returns the exit code."""
    parser = argparse.ArgumentParser(description="overlap of training sets with benchmarks")
    parser.add_argument("--folder", help="where the JSON-lines files are; the hub if not given")
    parser.add_argument("--train", nargs="+", default=["dapo17k", "math12k", "gsm8k"])
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS))
    options = parser.parse_args(arguments)
    try:
        index = BenchmarkIndex({name: _problems(name, options.folder) for name in options.benchmarks})
        for name in options.train:
            training = _problems(name, options.folder)
            print(f"{name}: {len(training)} problems\n{overlap_table(index.report(training))}\n")
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _problems(name: str, folder: str | None) -> list[Problem]:
    source = RegisteredSource(name, folder=folder)
    problems = source.problems()
    if not source.report.is_clean:
        print(source.report.summary(), file=sys.stderr)
    return problems


if __name__ == "__main__":
    sys.exit(main())
