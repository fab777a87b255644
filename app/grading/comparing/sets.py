"""Sets of real numbers as unions of intervals: unions, differences and inequalities in one canonical form."""

from collections.abc import Callable
from dataclasses import dataclass

from app.grading.answer_types import Answer, Bracketed, Members, NamedSet, Relation, Scalar, SetOperation
from app.grading.comparing.identity import real_value
from app.grading.comparing.inequalities import same_subject, solved, subjects

_INFINITY = float("inf")
_CLOSE = 1e-12


@dataclass(frozen=True, slots=True)
class Span:
    """An interval of real numbers; a point is closed at both ends."""

    low: float
    high: float
    low_closed: bool
    high_closed: bool


Region = tuple[Span, ...]
REALS = Span(-_INFINITY, _INFINITY, False, False)


def is_region(answer: Answer) -> bool:
    """Whether an answer can only be a set: a union, a named set, an interval that reaches to infinity."""
    return isinstance(answer, SetOperation | NamedSet)


def equal_regions(gold: Answer, answer: Answer, equal: Callable[[Answer, Answer], bool]) -> bool:
    """Whether two sets have the same elements; where they are no sets of known numbers, whether they look alike.

    Inequalities for two different variables are two answers.
    """
    if not all(same_subject(a, b) for a in subjects(gold) for b in subjects(answer)):
        return False
    first, second = region(gold), region(answer)
    if first is not None and second is not None:
        return _same(first, second)
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation):
        return _alike(gold, answer, equal)
    if isinstance(gold, NamedSet) and isinstance(answer, NamedSet):
        return gold.name == answer.name
    return False


def _alike(gold: SetOperation, answer: SetOperation, equal: Callable[[Answer, Answer], bool]) -> bool:
    if gold.sign != answer.sign:
        return False
    if equal(gold.left, answer.left) and equal(gold.right, answer.right):
        return True
    return gold.sign != "setminus" and equal(gold.left, answer.right) and equal(gold.right, answer.left)


def region(answer: Answer) -> Region | None:
    """The canonical form: disjoint spans in order; None where the answer is no set of known real numbers."""
    if isinstance(answer, NamedSet):
        return {"R": (REALS,), "": ()}.get(answer.name)
    if isinstance(answer, Members):
        points = [_number(item) for item in answer.items]
        spans = [Span(point, point, True, True) for point in points if point is not None]
        return _merge(spans) if len(spans) == len(points) else None
    if isinstance(answer, Bracketed):
        return _interval(answer)
    if isinstance(answer, Relation):
        found = solved(answer)
        return None if found is None else region(found.region)
    return _combined(answer) if isinstance(answer, SetOperation) else None


def _interval(answer: Bracketed) -> Region | None:
    if len(answer.items) != 2:
        return None
    low, high = map(_number, answer.items)
    if low is None or high is None or low > high:
        return None
    closed = answer.left == "[" and abs(low) != _INFINITY, answer.right == "]" and abs(high) != _INFINITY
    # (a, a) is written as a point, never as a set without elements
    return (Span(low, high, *closed),) if low < high or all(closed) else None


def _number(answer: Answer) -> float | None:
    return real_value(answer.node) if isinstance(answer, Scalar) and not answer.percent else None


def _combined(answer: SetOperation) -> Region | None:
    left, right = region(answer.left), region(answer.right)
    if left is None or right is None:
        return None
    if answer.sign == "cup":
        return _merge([*left, *right])
    if answer.sign == "setminus":
        right = _complement(right)
    # a ∩ b is what neither complement holds
    return _complement(_merge([*_complement(left), *_complement(right)]))


def _merge(spans: list[Span]) -> Region:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.low, not each.low_closed)):
        last = merged[-1] if merged else None
        if last and (span.low < last.high or (_close(span.low, last.high) and (span.low_closed or last.high_closed))):
            if span.high > last.high or (span.high == last.high and span.high_closed):
                merged[-1] = Span(last.low, span.high, last.low_closed, span.high_closed)
        else:
            merged.append(span)
    return tuple(merged)


def _complement(spans: Region) -> Region:
    gaps: list[Span] = []
    low, low_closed = -_INFINITY, False
    for span in spans:
        if low < span.low or (low == span.low and low_closed and not span.low_closed):
            gaps.append(Span(low, span.low, low_closed, not span.low_closed and span.low != -_INFINITY))
        low, low_closed = span.high, not span.high_closed
    if low < _INFINITY:
        gaps.append(Span(low, _INFINITY, low_closed, False))
    return tuple(gaps)


def _close(a: float, b: float) -> bool:
    return a == b or (abs(a - b) < _INFINITY and abs(a - b) <= _CLOSE * max(abs(a), abs(b)))


def _same(first: Region, second: Region) -> bool:
    return len(first) == len(second) and all(
        _close(a.low, b.low)
        and _close(a.high, b.high)
        and (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
        for a, b in zip(first, second, strict=True)
    )
