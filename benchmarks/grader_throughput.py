"""Verdicts a second on ordinary answers: ``python -m benchmarks.grader_throughput [--workers 2]``.

Integers, fractions, radicals, polynomials, points, lists, intervals, angles, matrices and words, half of them right in
another spelling. No pair occurs twice, so that nothing comes from the grader's memory; integers, which need no grading
process, are a third of all as in the field's benchmarks, and left out with ``--hard``.
"""

import argparse
import random
import time
from collections.abc import Callable

from app.grading.grader import Grader
from benchmarks.figures import Figure, add_json_option, write

#: A gold answer and the same in another spelling, from three numbers.
SHAPES: list[Callable[[int, int, int], tuple[str, str]]] = [
    lambda a, b, c: (rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a * c}}}{{{b * c}}}"),
    lambda a, b, c: (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"),
    lambda a, b, c: (rf"{a}x^2 + {b}x - {c}", rf"x({a}x + {b}) - {c}"),
    lambda a, b, c: (rf"\left( {a}, -{b}, {c} \right)", rf"({a},-{b},{c})"),
    lambda a, b, c: (f"{a},{-b},{c}", rf"x = {c}, {a} \text{{ or }} {-b}"),
    lambda a, b, c: (rf"[{a}, \infty)", rf"x \ge {a}"),
    lambda a, b, c: (rf"{a}^\circ", rf"{a}\text{{ degrees}}"),
    lambda a, b, c: (rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", rf"\begin{{bmatrix}} {a}\\{b} \end{{bmatrix}}"),
    lambda a, b, c: (rf"{a} + {b}i", rf"{b}i+{a}"),
    lambda a, b, c: (rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}"),
    lambda a, b, c: (rf"\text{{word{a}}}", f"Word{a}"),
    lambda a, b, c: (f"{a},{b:03d}", f"{a}{b:03d}"),
]


def make_items(count: int, share_of_integers: float) -> list[tuple[str, str]]:
    """Distinct (gold answer, completion) pairs."""
    draw = random.Random(0)
    items: dict[tuple[str, str], None] = {}
    while len(items) < count:
        a, b, c = (draw.randint(2, 999) for _ in range(3))
        shape = (lambda a, b, c: (str(a * b), str(a * b))) if draw.random() < share_of_integers else draw.choice(SHAPES)
        gold, answer = shape(a, b, c)
        wrong = shape(a + 1, b, c)[1]
        items[gold, rf"Therefore the answer is $\boxed{{{answer if draw.random() < 0.5 else wrong}}}$."] = None
    return list(items)


def main() -> None:
    """Prints verdicts a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--verdicts", type=int, default=4000)
    parser.add_argument("--hard", action="store_true")
    add_json_option(parser)
    arguments = parser.parse_args()
    items = make_items(arguments.verdicts, 0 if arguments.hard else 1 / 3)
    with Grader(arguments.workers) as grader:
        grader.grade([(r"\pi", rf"\boxed{{\pi+{n}}}") for n in range(4 * arguments.workers)])  # starts the workers
        started = time.perf_counter()
        verdicts = grader.grade(items)
        seconds = time.perf_counter() - started
    correct = sum(verdict.correct for verdict in verdicts)
    print(f"{len(items)} verdicts ({correct} correct) in {seconds:.2f} s: {len(items) / seconds:.0f} a second")
    write(arguments, "grader_throughput", {"verdicts": Figure(len(items) / seconds, "verdicts/s", "higher")})


if __name__ == "__main__":
    main()
