"""Whether two expressions are the same number or the same function.

Rational numbers are compared exactly. Everything else is evaluated with many digits, symbols at random points: two
expressions built from analytic functions that agree at several random points to 40 digits are identical, and a single
point where they differ proves that they are not. No simplification can run away, and nothing rests on one's success.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from app.rewards.answer_types import Node
from app.rewards.numeric import Evaluator, UndecidableError, exact_value

DIGITS = 60
MAX_DIGITS = 13_000
_GUARD = 15
_POINTS = 10
_CONSTANTS = frozenset(("π", "e", "i", "∞"))
_DISCRETE = frozenset(("floor", "ceil", "factorial", "factorial2", "binomial", "gcd", "lcm"))
_INTEGER_NAMES = frozenset("nkmNMKr")


def free_symbols(node: Node) -> set[str]:
    """The names of the variables; constants such as π are not among them."""
    if node.op == "sym":
        return set() if node.value in _CONSTANTS else {str(node.value)}
    return set().union(*(free_symbols(each) for each in node.args))


def contains(node: Node, names: frozenset[str]) -> bool:
    """Whether an operation, function or symbol of one of these names occurs."""
    return node.op in names or node.value in names or any(contains(each, names) for each in node.args)


def identical(a: Node, b: Node) -> bool:
    """Whether ``a`` and ``b`` are equal for all real values of their variables for which both are real.

    A ``log`` without a base may be the natural or the decimal logarithm, the same one on both sides. Numbers too
    large to evaluate are equal only where they are written alike.
    """
    b = _with_constants_of(a, b)
    if a == b:
        return True
    exact = exact_value(a), exact_value(b)
    if None not in exact:
        return exact[0] == exact[1]
    bases = (None, 10) if contains(a, frozenset(("log",))) or contains(b, frozenset(("log",))) else (None,)
    return any(_agree(a, b, base) for base in bases)


def real_value(node: Node) -> float | None:
    """An approximate real value of a constant; None where there is none. Infinities are values."""
    from mpmath import mp

    infinite = {"∞": float("inf")}.get(str(node.value)) if node.op == "sym" else None
    if infinite is not None:
        return infinite
    if node.op == "neg" and real_value(node.args[0]) == float("inf"):
        return -float("inf")
    if free_symbols(node):
        return None
    try:
        with mp.workdps(30):
            value = Evaluator(mp, {})(node)
            return float(value.real) if abs(value.imag) <= 1e-20 * (1 + abs(value)) else None
    except (UndecidableError, OverflowError):
        return None


def _with_constants_of(a: Node, b: Node) -> Node:
    """``b`` with constants of integration spelled as in ``a``: c for C, c_1 for C_1."""
    mine, theirs = free_symbols(a), free_symbols(b)
    for name in theirs - mine:
        other = name.swapcase()
        if name[0] in "cC" and other in mine - theirs and name[1:2] in ("", "_"):
            b = substitute(b, name, other)
    return b


def substitute(node: Node, old: str, new: str) -> Node:
    """The expression with another name for one of its variables."""
    if node.op == "sym" and node.value == old:
        return Node("sym", value=new)
    return Node(node.op, tuple(substitute(each, old, new) for each in node.args), node.value)


def _agree(a: Node, b: Node, log_base: int | None) -> bool:
    names = sorted(free_symbols(a) | free_symbols(b))
    if not names:
        return _equal_at(a, b, {}, log_base) is True
    if free_symbols(a) != free_symbols(b) and not _may_cancel(a, b):
        return False
    verdicts = []
    for point in _points(names, _is_discrete(a) or _is_discrete(b)):
        verdict = _equal_at(a, b, point, log_base)
        if verdict is False:
            return False
        verdicts.append(verdict)
    return verdicts.count(True) >= 2


def _is_discrete(node: Node) -> bool:
    """Whether whole numbers are meant for what occurs: floors, factorials, powers of a negative number."""
    if node.op == "pow" and free_symbols(node.args[1]) and (exact_value(node.args[0]) or 0) < 0:
        return True
    return (node.op == "fn" and node.value in _DISCRETE) or any(map(_is_discrete, node.args))


def _may_cancel(a: Node, b: Node) -> bool:
    """Whether a variable that only one side has could drop out of it (it occurs there at least twice)."""
    one_sided = free_symbols(a) ^ free_symbols(b)
    return all(_count(a, name) != 1 and _count(b, name) != 1 for name in one_sided)


def _count(node: Node, name: str) -> int:
    return (node.op == "sym" and node.value == name) + sum(_count(each, name) for each in node.args)


def _points(names: Sequence[str], discrete: bool) -> Iterator[dict[str, Any]]:
    """Assignments: half of them positive, half of any sign; whole numbers where floors and factorials ask for it."""
    from mpmath import mp

    random = Random(20_500_194)
    for index in range(_POINTS):
        point = {}
        for name in names:
            if discrete and name[0] in _INTEGER_NAMES:
                point[name] = mp.mpf(random.randint(2, 25))
                continue
            size = mp.mpf(random.randint(200, 3000)) / 1009
            point[name] = -size if index % 2 and random.random() < 0.6 else size
        yield point


def _equal_at(a: Node, b: Node, point: dict[str, Any], log_base: int | None) -> bool | None:
    """Whether the values agree at a point; None where they cannot be told there."""
    digits, needed = 0, DIGITS
    equal: bool | None = None
    while digits < needed <= MAX_DIGITS:
        digits = needed
        try:
            equal, needed = _compare(a, b, point, log_base, digits)
        except UndecidableError:
            return None
    return equal if needed <= digits else None


def _compare(a: Node, b: Node, point: dict[str, Any], log_base: int | None, digits: int) -> tuple[bool | None, int]:
    """Agreement at ``digits`` digits, and how many digits a trustworthy answer needs.

    The error of a value is judged by the largest intermediate value. A difference above it is final; agreement is
    final with digits enough to see a term of the size of 1, or of the values where they are smaller.
    """
    from mpmath import mp

    with mp.workdps(digits):
        evaluate = Evaluator(mp, point, log_base)
        x, y = evaluate(a), evaluate(b)
        noise = evaluate.scale * mp.mpf(10) ** (_GUARD - digits)
        if point and (abs(mp.im(x)) > noise) != (abs(mp.im(y)) > noise):
            return None, digits
        if abs(x - y) > noise:
            return False, digits
        above, size = int(mp.log10(evaluate.scale)), max(abs(x), abs(y))
        if size <= noise:  # perhaps zero, perhaps only small
            return True, max(5 * DIGITS, DIGITS + 2 * above)
        return True, DIGITS + above + max(0, -int(mp.log10(size)))


def constant_ratio(a: Node, b: Node) -> bool:
    """Whether ``a`` is a constant other than 0 times ``b``."""
    from mpmath import mp

    names = sorted(free_symbols(a) | free_symbols(b))
    ratios = []
    for point in _points(names, False):
        try:
            with mp.workdps(DIGITS):
                values = Evaluator(mp, point)(a), Evaluator(mp, point)(b)
        except UndecidableError:
            continue
        tiny = mp.mpf(10) ** (_GUARD - DIGITS)
        if min(map(abs, values)) < tiny:
            return False
        ratios.append(values[0] / values[1])
        if abs(ratios[-1] - ratios[0]) > tiny * abs(ratios[0]) * 10**10:
            return False
    return len(ratios) >= 2
