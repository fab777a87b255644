"""Equations and inequalities: when they are equal, and which of their sides is the answer."""

from collections.abc import Callable

from app.rewards.answer_types import Answer, Node, Relation, Scalar, Words
from app.rewards.identity import constant_ratio, free_symbols, identical, substitute
from app.rewards.sets import allowed_region, equal_regions, is_region

Equal = Callable[[Answer, Answer], bool]
_EQUATIONS = frozenset(("=", "approx", "sim", "equiv"))


def equal_relations(gold: Answer, answer: Answer, equal: Equal) -> bool:
    """Equality of two answers of which at least one is a relation.

    The right side of an equation is its answer and the left side names it (``x = 5`` is 5), unless both are
    equations with different names. An equation is equal to every equation that has the same solutions by
    multiplying both sides; an inequality to the interval that it describes.
    """
    if is_false(gold) or is_false(answer):
        return False
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        if same_equation(gold, answer):
            return True
        if _names_differ(gold, answer):
            return False
    first, second = _meanings(gold), _meanings(answer)
    return any(_equal_parts(a, b, equal) for a in first for b in second)


def is_false(answer: Answer) -> bool:
    """Whether a chain of equations between constants is wrong, such as ``6 = 5``; approximations are left alone."""
    if not isinstance(answer, Relation) or set(answer.signs) != {"="}:
        return False
    constants = [side.node for side in answer.sides if isinstance(side, Scalar) and not free_symbols(side.node)]
    return any(not identical(constants[0], each) for each in constants[1:])


def same_equation(a: Relation, b: Relation) -> bool:
    """Whether two equations differ by a constant factor, and by terms moved across."""
    if a.signs != ("=",) or b.signs != ("=",):
        return False
    nodes = [side.node for relation in (a, b) for side in relation.sides if isinstance(side, Scalar)]
    if len(nodes) != 4:
        return False
    first, second = (Node("add", (left, Node("neg", (right,)))) for left, right in (nodes[:2], nodes[2:]))
    if not free_symbols(first) or not free_symbols(second):
        return False
    return constant_ratio(first, second)


def _names_differ(a: Relation, b: Relation) -> bool:
    """Whether both name what they are equal to, and not alike: ``x = 5`` and ``y = 5``."""
    if not (set(a.signs) <= _EQUATIONS and set(b.signs) <= _EQUATIONS):
        return False
    if isinstance(a.sides[0], Words) and isinstance(b.sides[0], Words):
        return a.sides[0] != b.sides[0]
    first, second = _name(a), _name(b)
    if first is None or second is None or first == second:
        return False
    if first.op == "apply" or second.op == "apply":  # f(x) = … is y = …, and f(n) = n is f(x) = x
        return {first.op, second.op} == {"apply", "sym"} and "y" not in (first.value, second.value)
    return not identical(first, second)


def _name(relation: Relation) -> Node | None:
    left = relation.sides[0]
    return left.node if isinstance(left, Scalar) else None


def _meanings(answer: Answer) -> list[Answer]:
    """What a relation can stand for: its last side, an approximated side, the set it allows, or itself."""
    if not isinstance(answer, Relation):
        return [answer]
    signs = set(answer.signs)
    if signs <= _EQUATIONS:
        return [_renamed(answer, side) for side in _answer_sides(answer)]
    if signs == {"in"} and len(answer.sides) == 2:
        return [answer.sides[1]]
    region = allowed_region(answer)
    return [answer] if region is None else [answer, region]


def _answer_sides(relation: Relation) -> list[Answer]:
    """The sides that may be the answer: the last; around ``≈`` also the exact one; of ``5 = x`` the first."""
    sides = relation.sides
    last = sides[-1]
    if _is_name(last) and not _is_name(sides[0]):
        return [sides[0]]
    found = [last]
    if relation.signs[-1] != "=" and (len(sides) > 2 or _is_constant(sides[-2])):
        found.append(sides[-2])
    return found


def _is_name(answer: Answer) -> bool:
    return isinstance(answer, Scalar) and answer.node.op in ("sym", "apply") and not _is_constant(answer)


def _is_constant(answer: Answer) -> bool:
    return isinstance(answer, Scalar) and not free_symbols(answer.node)


def _renamed(relation: Relation, side: Answer) -> Answer:
    """The right side of ``f(n) = …`` with the function's variable under a common name."""
    name = _name(relation)
    if name is None or name.op != "apply" or len(name.args) != 1 or not isinstance(side, Scalar):
        return side
    variable = name.args[0]
    if variable.op != "sym" or variable.value not in free_symbols(side.node):
        return side
    return Scalar(substitute(side.node, str(variable.value), "x"), side.unit, side.percent, side.digits, side.places)


def _equal_parts(a: Answer, b: Answer, equal: Equal) -> bool:
    if isinstance(a, Relation) or isinstance(b, Relation):
        return isinstance(a, Relation) and isinstance(b, Relation) and _equal_chains(a, b, equal)
    if is_region(a) or is_region(b):
        return equal_regions(a, b, equal)
    return equal(a, b)


_MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def _equal_chains(a: Relation, b: Relation, equal: Equal) -> bool:
    """The same chain side by side, or read from the other end."""
    mirrored = Relation(b.sides[::-1], tuple(_MIRRORED.get(sign, sign) for sign in b.signs[::-1]))
    return any(a.signs == other.signs and all(map(equal, a.sides, other.sides)) for other in (b, mirrored))
