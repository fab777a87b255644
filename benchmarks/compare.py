"""Compares new figures with the committed ones, as ratios: ``python -m benchmarks.compare NEW.json [NEW.json …]``.

    python -m benchmarks.baselines --folder runs/figures && python -m benchmarks.compare runs/figures/*.json

NEW is what a benchmark wrote under ``--json``. It is compared with the file of its name in ``--baselines``. A ratio
says how many times better the new figure is: 2.00 is twice the tokens a second, or half the milliseconds. The exit code
is 1 where a figure is worse by more than ``--threshold``, 2 where there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigurationError
from benchmarks.figures import Figure, Record, read

BASELINES = Path(__file__).parent / "baselines"


@dataclass(frozen=True)
class Comparison:
    """A figure of both runs.

    Attributes:
        name: of the figure.
        new, old: what was measured.
        worse: by more than the threshold.
    """

    name: str
    new: Figure
    old: Figure
    worse: bool

    @property
    def ratio(self) -> float:
        """How many times better the new one is."""
        return ratio(self.new, self.old)


def ratio(new: Figure, old: Figure) -> float:
    """Above 1 where ``new`` is better, whichever way its unit counts."""
    return new.value / old.value if new.better == "higher" else old.value / new.value


def compare(new: Record, old: Record, threshold: float) -> list[Comparison]:
    """One for every figure of ``old``.

    Args:
        threshold: the part by which a figure may be worse, such as 0.1.

    Raises:
        ConfigurationError: the runs were made with other options, or a figure is missing: a comparison would mislead.
    """
    changed = [name for name in {**old.options, **new.options} if old.options.get(name) != new.options.get(name)]
    if new.benchmark != old.benchmark or changed:
        what = changed[0] if changed else "benchmark"
        pair = (new.options.get(what), old.options.get(what)) if changed else (new.benchmark, old.benchmark)
        raise ConfigurationError(f"{new.benchmark}: {what} is {pair[0]!r}, the baseline's {pair[1]!r}: run it alike")
    missing = old.figures.keys() - new.figures.keys()
    if missing:
        raise ConfigurationError(f"{new.benchmark}: {min(missing)!r} is missing, which the baseline has")
    pairs = [(name, new.figures[name], figure) for name, figure in old.figures.items()]
    return [Comparison(name, found, was, ratio(found, was) < 1 - threshold) for name, found, was in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", nargs="+", type=Path, metavar="NEW.json")
    parser.add_argument("--baselines", type=Path, default=BASELINES, help="a folder")
    parser.add_argument("--threshold", type=float, default=0.1, help="by which part a figure may be worse")
    options = parser.parse_args(arguments)
    worse = 0
    try:
        for path in options.new:
            new, old = read(path), read(options.baselines / path.name)
            worse += _print(new, old, compare(new, old, options.threshold))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{worse} worse by more than {options.threshold:.0%}")
    return 1 if worse else 0


def _print(new: Record, old: Record, comparisons: Sequence[Comparison]) -> int:
    """How many are worse."""
    print(new.benchmark)
    for what, now, then in (("machine", new.machine, old.machine), ("versions", new.versions, old.versions)):
        changed = [f"{name} {then.get(name)} → {now.get(name)}" for name in then if then.get(name) != now.get(name)]
        if changed:
            print(f"  other {what}: {', '.join(changed)}")
    for each in comparisons:
        values = f"{each.old.value:>12,.4g} → {each.new.value:>12,.4g} {each.new.unit:10}"
        print(f"  {each.name:40} {values} {each.ratio:.2f}×{'  worse' if each.worse else ''}")
    return sum(each.worse for each in comparisons)


if __name__ == "__main__":
    sys.exit(main())
