"""Where expressions are compared: random values of their variables."""

from collections.abc import Collection, Iterator
from random import Random
from typing import Any

from app.grading.answer_types import Node
from app.grading.comparing.numeric import exact_value, free_symbols

#: Points that are always drawn, and points in all, where few of them count.
BASIC_POINTS, MAX_POINTS = 24, 150
_COUNTING = frozenset(("factorial", "factorial2", "binomial", "gcd", "lcm"))
_STEPS = frozenset(("floor", "ceil"))
_WHOLE_FUNCTIONS = _STEPS | _COUNTING
_WHOLE_LETTERS = frozenset("nkmNMKr")


def random_points(names: Collection[str], whole: Collection[str], steps: bool = False) -> Iterator[dict[str, Any]]:
    """Assignments, at most ``MAX_POINTS``: even ones positive, odd ones of any sign.

    The first four are of the size of 1. The others range from 0.02 to 300, spread evenly in their logarithm, so that
    ``|x-5|`` shows both its sides, and ``\\ln(x-50)`` its values.

    Args:
        names: of the variables.
        whole: those of them that stand for whole numbers.
        steps: whether every third point shall be a multiple of 1/2, where floors have their steps.
    """
    from mpmath import mp

    random = Random(20_500_194)
    sizes = {name: _sizes(random) for name in sorted(names)}
    for index in range(MAX_POINTS):
        point = {}
        for name, drawn in sizes.items():
            if name in whole:
                point[name] = mp.mpf(random.randint(2, 150 if index % 4 == 3 else 25))
                continue
            size = mp.mpf(drawn[index]) / 1009
            if steps and index % 3 == 2:
                size = mp.ceil(2 * size) / 2
            point[name] = -size if index % 2 and random.random() < 0.6 else size
        yield point


def _sizes(random: Random) -> list[int]:
    """One variable's absolute values, in 1009ths: of ten points in a row that are positive, one in every tenth of
    the range."""
    exponents = [random.uniform(2.3, 3.5) for _ in range(4)]
    while len(exponents) < MAX_POINTS:
        even, odd = ([1.3 + 0.42 * (stratum + random.random()) for stratum in range(10)] for _ in range(2))
        random.shuffle(even)
        random.shuffle(odd)
        exponents += [each for pair in zip(even, odd, strict=True) for each in pair]
    return [int(10**exponent) for exponent in exponents]


def whole_names(node: Node) -> set[str]:
    """The variables that whole numbers are meant for: those in the limits of a sum, in a factorial or a binomial;
    and beside these, floors and powers of a negative number those that have a whole number's letter."""
    found = _counting_names(node)
    if found or _is_discrete(node):
        found |= {name for name in free_symbols(node) if name[0] in _WHOLE_LETTERS}
    return found


def has_steps(node: Node) -> bool:
    """Whether a floor occurs."""
    return (node.op == "fn" and node.value in _STEPS) or any(map(has_steps, node.args))


def _counting_names(node: Node) -> set[str]:
    own: set[str] = set()
    if node.op in ("sum", "prod"):
        own = free_symbols(node.args[0]) | free_symbols(node.args[1])
        return (own | _counting_names(node.args[2])) - {str(node.value)}
    if node.op == "fn" and node.value in _COUNTING:
        own = free_symbols(node)
    return own.union(*map(_counting_names, node.args))


def _is_discrete(node: Node) -> bool:
    if node.op == "pow" and free_symbols(node.args[1]) and (exact_value(node.args[0]) or 0) < 0:
        return True
    return (node.op == "fn" and node.value in _WHOLE_FUNCTIONS) or any(map(_is_discrete, node.args))
