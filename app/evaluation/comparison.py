"""Two evaluations of the same problems, compared by paired bootstrap.

Usage: ``python -m app.evaluation.comparison A B``. Both models saw the same problems, so the difference is
taken problem by problem before problems are drawn again: what makes a problem hard for both cancels, and the
interval is narrower than that of two separate scores.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.errors import ConfigurationError
from app.evaluation.benchmarks import align, percent
from app.evaluation.intervals import Interval, macro_interval, mean_interval
from app.evaluation.results import hash_problems, read_results
from app.evaluation.samples import Sample, read_samples
from app.seeds import derive_seed


@dataclass(frozen=True)
class Comparison:
    """One benchmark's change from A to B.

    Attributes:
        name: the benchmark's.
        first, second: accuracies (avg@k) of A and B, between 0 and 1.
        difference: B − A, with the interval of the paired bootstrap.
        differences: B − A problem by problem, [N].
        newly_right, newly_wrong: ids of problems that A got wrong and B right, and the other way round. A
            problem is right where more than half of its samples are correct.
    """

    name: str
    first: float
    second: float
    difference: Interval
    differences: Tensor
    newly_right: list[str]
    newly_wrong: list[str]


def compare(
    first: str | Path, second: str | Path, benchmarks: Sequence[str] | None = None, seed: int = 0
) -> list[Comparison]:
    """Compares two finished evaluations benchmark by benchmark.

    Args:
        first, second: result folders A and B.
        benchmarks: names to compare; None for all, which both folders must then have.
        seed: of the bootstrap.

    Raises:
        ConfigurationError: where a folder is not that of a finished evaluation, a benchmark is missing from
            one, or its problems or gold answers differ between them.
    """
    present = [list(read_results(folder)["benchmarks"]) for folder in (first, second)]
    wanted = sorted({*present[0], *present[1]}) if benchmarks is None else list(benchmarks)
    if not wanted:
        raise ConfigurationError(f"{first} and {second} hold no benchmarks")
    for folder, names in zip((first, second), present, strict=True):
        missing = [name for name in wanted if name not in names]
        if missing:
            shared = [name for name in present[0] if name in present[1]]
            advice = f"use --benchmarks {' '.join(shared)}" if shared else "the folders share none"
            raise ConfigurationError(f"{folder} has no results of {', '.join(missing)}: {advice}")
    return [_compare_benchmark(name, first, second, seed) for name in wanted]


def format_comparison(comparisons: Sequence[Comparison], seed: int = 0) -> str:
    """A table in percent, a row a benchmark and the macro average of several last, and the problems that changed."""
    rows = [["benchmark", "problems", "A", "B", "B - A [95 %]", "newly right", "newly wrong"]]
    for each in comparisons:
        counts = [str(len(each.newly_right)), str(len(each.newly_wrong))]
        rows.append([each.name, str(len(each.differences)), *_scores(each.first, each.second, each.difference)])
        rows[-1] += counts
    if len(comparisons) > 1:
        macro = macro_interval({each.name: each.differences for each in comparisons}, seed)
        first = sum(each.first for each in comparisons) / len(comparisons)
        rows.append(["macro average", "", *_scores(first, first + macro.value, macro), "", ""])
    changed = [
        f"{each.name}, newly {kind}: {', '.join(ids)}"
        for each in comparisons
        for kind, ids in (("right", each.newly_right), ("wrong", each.newly_wrong))
        if ids
    ]
    return "\n".join([align(rows), *changed])


def grader_note(first: str | Path, second: str | Path) -> str | None:
    """One line where two evaluations were graded differently, so that verdicts differ for that reason too."""
    used = []
    for folder in (first, second):
        results = read_results(folder)
        limit = results["settings"].get("grader_timeout_s")
        used.append((results["versions"].get("grader", "unknown"), limit))
    if used[0] == used[1]:
        return None
    named = " and ".join(f"{version} (time limit {limit} s)" for version, limit in used)
    return (
        f"note: A and B were graded by different graders, {named}; "
        "validate again with the folder of the older one as evaluation.folder grades its samples anew"
    )


def data_note(first: str | Path, second: str | Path, benchmarks: Sequence[str]) -> str | None:
    """One line where the same problems and gold answers came with other tolerances or units."""
    one, other = (read_results(folder)["benchmarks"] for folder in (first, second))
    named = [name for name in benchmarks if one[name].get("data_hash") != other[name].get("data_hash")]
    if not named:
        return None
    return f"note: A and B had other tolerances, units or versions of this project for {', '.join(named)}"


def numerics_note(first: str | Path, second: str | Path) -> str | None:
    """One line where completions were computed in another way: in part the difference is then of the arithmetic."""
    one, other = (_flat(read_results(folder)["settings"].get("numerics", {})) for folder in (first, second))
    named = [
        f"{name} {one.get(name, 'unknown')} and {other.get(name, 'unknown')}"
        for name in sorted({*one, *other})
        if one.get(name, "unknown") != other.get(name, "unknown")
    ]
    return f"note: A and B were computed differently: {', '.join(named)}" if named else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison; where there is none to make, one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m app.evaluation.comparison", description="Compare two evaluations.")
    parser.add_argument("first", metavar="A", help="result folder of the first model")
    parser.add_argument("second", metavar="B", help="result folder of the second model")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help="compare these alone (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    options = parser.parse_args(arguments)
    try:
        comparisons = compare(options.first, options.second, options.benchmarks, options.seed)
        folders = (options.first, options.second)
        names = [each.name for each in comparisons]
        notes = [grader_note(*folders), data_note(*folders, names), numerics_note(*folders)]
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    heading = [f"A: {options.first}", f"B: {options.second}", *filter(None, notes)]
    print("\n".join([*heading, "", format_comparison(comparisons, options.seed)]))
    return 0


def _scores(first: float, second: float, difference: Interval) -> list[str]:
    return [f"{100 * first:.1f}", f"{100 * second:.1f}", percent(difference)]


def _compare_benchmark(name: str, first: str | Path, second: str | Path, seed: int) -> Comparison:
    rows = [read_samples(folder, name) for folder in (first, second)]
    _check_problems(name, *rows)
    before, after = (_accuracies(each) for each in rows)
    # the order of keys, as the metrics have it: the interval does not depend on the files' order
    ids = sorted(before, key=lambda each: derive_seed("problem", each))
    before_N = torch.tensor([before[each] for each in ids], dtype=torch.float64)
    after_N = torch.tensor([after[each] for each in ids], dtype=torch.float64)
    return Comparison(
        name=name,
        first=before_N.mean().item(),
        second=after_N.mean().item(),
        difference=mean_interval(after_N - before_N, seed),
        differences=after_N - before_N,
        newly_right=[each for each in before if before[each] <= 0.5 < after[each]],
        newly_wrong=[each for each in before if after[each] <= 0.5 < before[each]],
    )


def _check_problems(name: str, first: Sequence[Sample], second: Sequence[Sample]) -> None:
    one, other = ({row.id: row for row in rows} for rows in (first, second))
    if not one:
        raise ConfigurationError(f"{name}: the sample logs are empty")
    if one.keys() != other.keys():
        example = sorted(one.keys() ^ other.keys())[0]
        raise ConfigurationError(
            f"{name}: the folders do not hold the same problems ({len(one)} and {len(other)}; "
            f"{example!r} is in one alone): evaluate both models on the same data"
        )
    if hash_problems(one.values()) != hash_problems(other.values()):
        example = next(
            key for key in one if (one[key].problem, one[key].answer) != (other[key].problem, other[key].answer)
        )
        raise ConfigurationError(
            f"{name}: problem {example!r} has another text or gold answer in the second folder: "
            "evaluate both models on the same data"
        )


def _accuracies(rows: Sequence[Sample]) -> dict[str, float]:
    """By problem's id, the share of correct samples."""
    verdicts: dict[str, list[bool]] = {}
    for row in rows:
        verdicts.setdefault(row.id, []).append(row.correct)
    return {key: sum(each) / len(each) for key, each in verdicts.items()}


if __name__ == "__main__":
    sys.exit(main())
