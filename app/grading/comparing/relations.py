"""Equations and inequalities: when they are equal, and which of their sides is the answer."""

from collections.abc import Callable
from dataclasses import replace

from app.grading.answer_types import Answer, Bracketed, Members, Node, Relation, Scalar, Words, number
from app.grading.comparing.identity import constant_ratio, free_symbols, identical, substitute
from app.grading.comparing.inequalities import MIRRORED, same_subject, solved, subjects
from app.grading.comparing.sets import equal_regions, is_region

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
    if not all(same_subject(a, b) for a in subjects(gold) for b in subjects(answer)):
        return False
    if isinstance(gold, Members) or isinstance(answer, Members):
        gold, answer = _each_named(gold), _each_named(answer)
        if isinstance(gold, Members) and isinstance(answer, Members):
            return equal(gold, answer)
    if _variable(gold) and _variable(answer):
        gold, answer = _renamed(gold), _renamed(answer)
    first, second = _meanings(gold), _meanings(answer)
    return any(_equal_parts(a, b, equal) for a in first for b in second)


def _each_named(answer: Answer) -> Answer:
    """``(x,y) = (1,2)`` as ``x = 1, y = 2``."""
    if not isinstance(answer, Relation) or answer.signs != ("=",):
        return answer
    names, values = answer.sides
    if not (isinstance(names, Bracketed) and isinstance(values, Bracketed)) or len(names.items) != len(values.items):
        return answer
    pairs = zip(names.items, values.items, strict=True)
    return Members("list", tuple(Relation((name, value), ("=",)) for name, value in pairs))


def named_apart(answer: Members) -> bool:
    """Whether the members are equations for different names, whose values are then in that order."""
    if not all(isinstance(item, Relation) and item.signs == ("=",) for item in answer.items):
        return False
    first = answer.items[0]
    return any(_names_differ(first, item) for item in answer.items[1:])  # type: ignore[arg-type]


def is_false(answer: Answer) -> bool:
    """Whether a chain of equations between constants is wrong, such as ``6 = 5``; approximations are left alone."""
    if not isinstance(answer, Relation) or set(answer.signs) != {"="}:
        return False
    constants = [plain_value(side) for side in answer.sides if isinstance(side, Scalar) and _is_constant(side)]
    return any(not identical(constants[0], each) for each in constants[1:])


def plain_value(side: Scalar) -> Node:
    """The expression, where it is a percentage its hundredth."""
    return Node("div", (side.node, number(100))) if side.percent else side.node


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
    if isinstance(a.sides[0], Bracketed) and isinstance(b.sides[0], Bracketed):
        return a.sides[0] != b.sides[0]
    first, second = _name(a), _name(b)
    if first is None or second is None or first == second:
        return False
    if first.op == second.op == "apply":
        return first.value != second.value or not (_is_argument(first) and _is_argument(second))
    if {first.op, second.op} == {"apply", "sym"}:  # f(x) = … is f = …, and y = …
        return first.value != second.value and "y" not in (first.value, second.value)
    return not identical(first, second)


def _is_argument(function: Node) -> bool:
    """Whether a function's argument is a variable, for which another letter would do; a capital is an event."""
    return all(each.op == "sym" and str(each.value)[0].islower() for each in function.args)


def _name(relation: Relation) -> Node | None:
    left = relation.sides[0]
    return left.node if isinstance(left, Scalar) else None


def _meanings(answer: Answer) -> list[Answer]:
    """What a relation can stand for: its last side, an approximated side, the set it allows, or itself."""
    if not isinstance(answer, Relation):
        return [answer]
    signs = set(answer.signs)
    if signs <= _EQUATIONS:
        return _answer_sides(answer)
    if signs == {"in"} and len(answer.sides) == 2:
        return [answer.sides[1]]
    found = solved(answer)
    return [answer] if found is None else [answer, found.region]


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
    """Whether an answer is a variable or a function of some; ``f(0)`` is a value."""
    if not isinstance(answer, Scalar) or _is_constant(answer):
        return False
    return answer.node.op == "sym" or (answer.node.op == "apply" and any(map(free_symbols, answer.node.args)))


def _is_constant(answer: Answer) -> bool:
    return isinstance(answer, Scalar) and not free_symbols(answer.node)


def _variable(answer: Answer) -> str | None:
    """n of ``f(n) = …``."""
    name = _name(answer) if isinstance(answer, Relation) else None
    if name is None or name.op != "apply" or len(name.args) != 1 or name.args[0].op != "sym":
        return None
    return str(name.args[0].value)


def _renamed(answer: Answer) -> Answer:
    """``f(n) = …`` with a common name for the variable."""
    variable = _variable(answer)
    if not isinstance(answer, Relation) or variable is None:
        return answer
    sides = [replace(s, node=substitute(s.node, variable, "·")) if isinstance(s, Scalar) else s for s in answer.sides]
    return Relation(tuple(sides), answer.signs)


def _equal_parts(a: Answer, b: Answer, equal: Equal) -> bool:
    if isinstance(a, Relation) or isinstance(b, Relation):
        return isinstance(a, Relation) and isinstance(b, Relation) and _equal_chains(a, b, equal)
    if is_region(a) or is_region(b):
        return equal_regions(a, b, equal)
    return equal(a, b)


def _equal_chains(a: Relation, b: Relation, equal: Equal) -> bool:
    """The same chain side by side, or read from the other end."""
    mirrored = Relation(b.sides[::-1], tuple(MIRRORED.get(sign, sign) for sign in b.signs[::-1]))
    return any(a.signs == other.signs and all(map(equal, a.sides, other.sides)) for other in (b, mirrored))
