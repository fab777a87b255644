"""Inequalities: what they say something about, and the set of values that they allow it."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.grading.answer_types import Answer, Bracketed, Members, NamedSet, Node, Relation, Scalar, SetOperation, number
from app.grading.comparing.numeric import free_symbols

MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
_LEFT = {"lt": "(", "le": "[", "gt": "(", "ge": "["}
_RIGHT = {"lt": ")", "le": "]", "gt": ")", "ge": "]"}
_BELOW, _ABOVE = frozenset(("lt", "le")), frozenset(("gt", "ge"))
_INFINITY = Node("sym", value="∞")


@dataclass(frozen=True, slots=True)
class Solved:
    """``subject`` (a variable, or a function's value) lies in ``region``."""

    subject: Node
    region: Answer


def solved(relation: Relation) -> Solved | None:
    """The set that an inequality allows its subject; None for other relations.

    Understood are ``x < a`` either way round, ``a < x < b``, ``x ≠ a``, ``x ∈ S``, and ``|x - c| < a`` with any sign.
    """
    sides, signs = relation.sides, relation.signs
    if len(sides) == 2 and not _is_subject(sides[0]) and _is_subject(sides[1]):
        sides, signs = sides[::-1], (MIRRORED.get(signs[0], signs[0]),)
    if signs == ("in",) and isinstance(sides[0], Scalar) and _is_variable(sides[0].node):
        return Solved(sides[0].node, sides[1])
    if len(sides) == 2 and isinstance(sides[0], Scalar) and isinstance(sides[1], Scalar):
        return _two_sided(sides[0].node, signs[0], sides[1])
    if len(sides) == 3 and _is_subject(sides[1]) and isinstance(sides[1], Scalar):
        if set(signs) <= _BELOW:
            return Solved(sides[1].node, Bracketed(_LEFT[signs[0]], _RIGHT[signs[1]], (sides[0], sides[2])))
        if set(signs) <= _ABOVE:
            return Solved(sides[1].node, Bracketed(_LEFT[signs[1]], _RIGHT[signs[0]], (sides[2], sides[0])))
    return None


def subjects(answer: Answer) -> list[Node]:
    """What the inequalities within an answer speak of; ``a < b`` may speak of either."""
    if isinstance(answer, SetOperation):
        return subjects(answer.left) + subjects(answer.right)
    if not isinstance(answer, Relation) or (len(answer.sides) == 2 and all(map(_is_subject, answer.sides))):
        return []
    found = solved(answer)
    return [found.subject] if found else []


def same_subject(first: Node, second: Node) -> bool:
    """Whether two inequalities speak of the same; ``y`` stands for any function's value."""
    if {first.op, second.op} == {"sym", "apply"}:
        return "y" in (first.value, second.value) or first.value == second.value
    return first.value == second.value


def is_inequality(answer: Answer) -> bool:
    """Whether an answer is one inequality for one variable."""
    return isinstance(answer, Relation) and bool(set(answer.signs) & (_BELOW | _ABOVE | {"ne", "in"}))


def joined(items: Sequence[Answer], sign: str) -> Answer | None:
    """What all of the inequalities (``sign`` "cap") or any of them ("cup") allow; None where they do not speak of
    the same. Beside inequalities an equation is a point."""
    found = [_as_set(item) for item in items]
    if any(each is None for each in found):
        return None
    known = [each for each in found if each is not None]
    if not all(same_subject(known[0].subject, each.subject) for each in known[1:]):
        return None
    answer = items[0] if is_inequality(items[0]) else known[0].region
    for item, each in zip(items[1:], known[1:], strict=True):
        answer = SetOperation(sign, answer, item if is_inequality(item) else each.region)
    return answer


def _as_set(answer: Answer) -> Solved | None:
    if not isinstance(answer, Relation):
        return None
    if answer.signs == ("=",) and _is_subject(answer.sides[0]) and isinstance(answer.sides[0], Scalar):
        return Solved(answer.sides[0].node, Members("set", (answer.sides[1],)))
    return solved(answer)


def _is_subject(answer: Answer) -> bool:
    return isinstance(answer, Scalar) and (_is_variable(answer.node) or _centre(answer.node) is not None)


def _is_variable(node: Node) -> bool:
    return node.op == "apply" or (node.op == "sym" and bool(free_symbols(node)))


def _centre(node: Node) -> tuple[Node, Node] | None:
    """x and c of ``|x - c|``; None for other expressions."""
    inside = node.args[0] if node.op == "fn" and node.value == "abs" else None
    if inside is None:
        return None
    if _is_variable(inside):
        return inside, number(0)
    if inside.op == "add" and _is_variable(inside.args[0]) and not free_symbols(inside.args[1]):
        return inside.args[0], Node("neg", (inside.args[1],))
    return None


def _two_sided(left: Node, sign: str, bound: Scalar) -> Solved | None:
    if _is_variable(left):
        region = _one_sided(sign, bound)
        return Solved(left, region) if region is not None else None
    centre = _centre(left)
    if centre is None or sign not in _BELOW | _ABOVE:
        return None
    low, high = (Scalar(_sum(centre[1], end)) for end in (Node("neg", (bound.node,)), bound.node))
    if sign in _BELOW:
        return Solved(centre[0], Bracketed(_LEFT[sign], _RIGHT[sign], (low, high)))
    outside = Bracketed("(", _RIGHT[sign], (Scalar(Node("neg", (_INFINITY,))), low))
    return Solved(centre[0], SetOperation("cup", outside, Bracketed(_LEFT[sign], ")", (high, Scalar(_INFINITY)))))


def _sum(a: Node, b: Node) -> Node:
    return b if a == number(0) else Node("add", (a, b))


def _one_sided(sign: str, bound: Scalar) -> Answer | None:
    if sign in _BELOW:
        return Bracketed("(", _RIGHT[sign], (Scalar(Node("neg", (_INFINITY,))), bound))
    if sign in _ABOVE:
        return Bracketed(_LEFT[sign], ")", (bound, Scalar(_INFINITY)))
    if sign == "ne":
        return SetOperation("setminus", NamedSet("R"), Members("set", (bound,)))
    return None
