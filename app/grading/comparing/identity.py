"""Whether two expressions are the same number or the same function.

Rational numbers are compared exactly. Everything else is evaluated with many digits, symbols at random points: two
expressions built from analytic functions that agree at several random points to 40 digits are identical, and a single
point where they differ proves that they are not. A point counts only where every function of real numbers is real
(the other branches of roots and logarithms are nobody's meaning), so points are drawn until enough of them count. No
simplification can run away, and nothing rests on one's success.
"""

from itertools import islice
from typing import Any

from app.grading.answer_types import Node
from app.grading.comparing.numeric import Evaluator, UndecidableError, exact_value, free_symbols
from app.grading.comparing.sampling import BASIC_POINTS, has_steps, random_points, whole_names

DIGITS = 60
MAX_DIGITS = 13_000
#: The same for a point, of which there are many.
MAX_POINT_DIGITS = 1500
_GUARD = 15
_ENOUGH = 2


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
    if node.op in ("sum", "prod") and node.value == old:  # within the sum it is the index
        low, high, body = node.args
        return Node(node.op, (substitute(low, old, new), substitute(high, old, new), body), node.value)
    return Node(node.op, tuple(substitute(each, old, new) for each in node.args), node.value)


def _agree(a: Node, b: Node, log_base: int | None) -> bool:
    """Agreement wherever both are real, at two points or more. Where they are so nowhere, as complex numbers."""
    names = free_symbols(a) | free_symbols(b)
    if not names:
        return _equal_at(a, b, {}, log_base)[0] is True
    if free_symbols(a) != free_symbols(b) and not _may_cancel(a, b):
        return False
    inside, outside = 0, []
    points = random_points(names, whole_names(a) | whole_names(b), has_steps(a) or has_steps(b))
    for index, point in enumerate(points):
        if index >= BASIC_POINTS and inside >= _ENOUGH:
            break
        verdict, real = _equal_at(a, b, point, log_base)
        if real and verdict is False:
            return False
        inside += real and verdict is True
        outside += [] if real or verdict is None else [verdict]
    return inside >= _ENOUGH or (inside == 0 and len(outside) >= _ENOUGH and all(outside))


def _may_cancel(a: Node, b: Node) -> bool:
    """Whether a variable that only one side has could drop out of it (it occurs there at least twice)."""
    one_sided = free_symbols(a) ^ free_symbols(b)
    return all(_count(a, name) != 1 and _count(b, name) != 1 for name in one_sided)


def _count(node: Node, name: str) -> int:
    return (node.op == "sym" and node.value == name) + sum(_count(each, name) for each in node.args)


def _equal_at(a: Node, b: Node, point: dict[str, Any], log_base: int | None) -> tuple[bool | None, bool]:
    """Whether the values agree at a point, None where they cannot be told there; and whether both are real there,
    or complex by an imaginary unit that is written."""
    digits, needed, limit = 0, DIGITS, MAX_POINT_DIGITS if point else MAX_DIGITS
    equal, real = None, False
    while digits < needed <= limit:
        digits = needed
        try:
            equal, real, needed = _compare(a, b, point, log_base, digits)
        except UndecidableError:
            return None, False
    return equal if needed <= digits else None, real


def _compare(
    a: Node, b: Node, point: dict[str, Any], log_base: int | None, digits: int
) -> tuple[bool | None, bool, int]:
    """Agreement at ``digits`` digits, whether it is one of real numbers, and the digits that a trustworthy answer
    needs.

    The error of a value is judged by the largest intermediate value. A difference above it is final; agreement is
    final with digits enough to see a term of the size of 1, or of the values where they are smaller.
    """
    from mpmath import mp

    with mp.workdps(digits):
        evaluate = Evaluator(mp, point, log_base)
        x, y = evaluate(a), evaluate(b)
        noise = evaluate.scale * mp.mpf(10) ** (_GUARD - digits)
        real = not evaluate.left_reals
        if abs(x - y) > noise:
            return False, real, digits
        above, size = int(mp.log10(evaluate.scale)), max(abs(x), abs(y))
        if size <= noise:  # perhaps zero, perhaps only small
            return True, real, max(5 * DIGITS, DIGITS + 2 * above)
        return True, real, DIGITS + above + max(0, -int(mp.log10(size)))


def constant_ratio(a: Node, b: Node) -> bool:
    """Whether ``a`` is a constant other than 0 times ``b``."""
    from mpmath import mp

    ratios: list[Any] = []
    for point in islice(random_points(free_symbols(a) | free_symbols(b), frozenset()), BASIC_POINTS):
        evaluate = Evaluator(mp, point)
        try:
            with mp.workdps(DIGITS):
                values = evaluate(a), evaluate(b)
        except UndecidableError:
            continue
        if evaluate.left_reals:
            continue
        tiny = mp.mpf(10) ** (_GUARD - DIGITS)
        if min(map(abs, values)) < tiny:
            return False
        ratios.append(values[0] / values[1])
        if abs(ratios[-1] - ratios[0]) > tiny * abs(ratios[0]) * 10**10:
            return False
    return len(ratios) >= 2
