"""Lists of answers: what the first member's name or the last one's modulus means for the others, and which lists of
inequalities are one set."""

from collections.abc import Collection, Sequence

from app.grading.answer_types import Answer, Congruence, Members, Node, Relation, Scalar
from app.grading.comparing.inequalities import is_inequality, joined
from app.grading.comparing.sets import region
from app.grading.reading.lexer import UnreadableError


def combined(items: Sequence[Answer], joints: Collection[str]) -> Answer:
    """Two answers or more as one: a list, or the set that inequalities for one variable describe together.

    Args:
        items: the members.
        joints: the words between them, "and" or "or"; none of them for commas.
    """
    items = _share_modulus(_share_name(items))
    if not any(map(is_inequality, items)):
        return Members("list", tuple(items))
    if len(joints) > 1:
        raise UnreadableError("inequalities joined by and as well as by or")
    if "or" in joints:
        union = joined(items, "cup")
        if union is None:
            raise UnreadableError("one of several statements")
        return union
    common = joined(items, "cap") if all(map(is_inequality, items)) else None
    if common is None:
        return Members("list", tuple(items))
    # x < 1, x > 3: a list of what is possible; together they would be impossible
    return joined(items, "cup") or common if not joints and region(common) == () else common


def _share_name(items: Sequence[Answer]) -> Sequence[Answer]:
    """``x = 1, 2``: a name that the first of several values has belongs to all."""
    first = items[0]
    if not isinstance(first, Relation) or first.signs not in (("=",), ("ne",), ("equiv",)):
        return items
    if any(isinstance(item, Relation) for item in items[1:]):
        return items
    if isinstance(first.sides[0], Scalar) and first.sides[0].node.op == "sym":
        return [first, *(_named(first, item) for item in items[1:])]
    return items


def _named(first: Relation, item: Answer) -> Answer:
    if isinstance(item, Congruence):
        return Congruence(item.name or _node(first.sides[0]), item.residue, item.modulus)
    return Relation((first.sides[0], item), first.signs)


def _share_modulus(items: Sequence[Answer]) -> Sequence[Answer]:
    """``n ≡ 1, 2 (mod 4)``: a modulus after the last of several residues belongs to all."""
    last = items[-1]
    if not isinstance(last, Congruence):
        return items
    return [_congruence(item, last.modulus) for item in items]


def _congruence(item: Answer, modulus: Node) -> Answer:
    if isinstance(item, Scalar):
        return Congruence(None, item.node, modulus)
    if isinstance(item, Relation) and item.signs in (("equiv",), ("=",)):
        name, residue = map(_node, item.sides)
        return Congruence(name, residue, modulus) if name and residue else item
    return item


def _node(answer: Answer) -> Node | None:
    return answer.node if isinstance(answer, Scalar) else None
