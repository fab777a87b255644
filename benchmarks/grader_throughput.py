"""Verdicts a second on ordinary answers: ``python benchmarks/grader_throughput.py [--workers 2] [--data FOLDER]``.

Every gold answer, or those of JSON-lines files under ``--data`` with a column ``answer``, meets itself in another
spelling and another row's answer. No verdict is taken twice, so that nothing comes from the grader's memory.
"""

import argparse
import json
import random
import time
from pathlib import Path

from app.rewards.grading import Grader

GOLDS = [
    *(str(n) for n in range(1, 60)),
    *(rf"\frac{{{n}}}{{{n + 1}}}" for n in range(1, 40)),
    *(rf"{n}\sqrt{{{n + 1}}}" for n in range(2, 30)),
    *(rf"({n}, {n + 3})" for n in range(20)),
    *(rf"{n}x^2 + {n + 1}x - 3" for n in range(2, 20)),
    *(rf"{n}^\circ" for n in range(10, 30)),
    *(rf"{n},{n + 2},{n + 5}" for n in range(15)),
    *(rf"[{n}, \infty)" for n in range(10)),
    *(rf"\text{{{word}}}" for word in ("east", "Evelyn", "even", "circle")),
    *(rf"\begin{{pmatrix}} {n} \\ {n + 1} \end{{pmatrix}}" for n in range(10)),
]


def read_golds(folder: Path) -> list[str]:
    """The distinct gold answers of the JSON-lines files in a folder."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    return list(dict.fromkeys(json.loads(line)["answer"] for line in lines))


def main() -> None:
    """Prints verdicts a second, for all and for those that need a grading process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--verdicts", type=int, default=4000)
    arguments = parser.parse_args()
    golds = read_golds(arguments.data) if arguments.data else GOLDS
    draw = random.Random(0)
    items = []
    for index in range(arguments.verdicts):
        gold = draw.choice(golds)
        answer = f"{gold} {' ' * index}" if index % 2 else f"{draw.choice(golds)}{' ' * index} "
        items.append((gold, rf"Therefore $\boxed{{{answer.replace('frac', 'dfrac')}{{}}}}$."))
    with Grader(arguments.workers) as grader:
        grader.grade([(r"\pi", rf"\boxed{{\pi+{n}}}") for n in range(4 * arguments.workers)])  # starts the workers
        started = time.perf_counter()
        verdicts = grader.grade(items)
        seconds = time.perf_counter() - started
    correct = sum(verdict.correct for verdict in verdicts)
    print(f"{len(items)} verdicts ({correct} correct) in {seconds:.2f} s: {len(items) / seconds:.0f} a second")


if __name__ == "__main__":
    main()
