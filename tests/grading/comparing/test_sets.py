"""Sets of real numbers against sympy's."""

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from app.grading.comparing.sets import region
from app.grading.reading.readings import read_answers

ENDS = st.integers(-4, 4)
PIECES = st.one_of(
    st.tuples(ENDS, ENDS, st.booleans(), st.booleans()).map(lambda p: sympy.Interval(min(p[:2]), max(p[:2]), *p[2:])),
    st.sets(ENDS, min_size=1, max_size=3).map(lambda points: sympy.FiniteSet(*points)),
    ENDS.map(lambda a: sympy.Interval(-sympy.oo, a)),
    ENDS.map(lambda a: sympy.Interval.open(a, sympy.oo)),
)


def _latex(piece: sympy.Set) -> str:
    if isinstance(piece, sympy.FiniteSet):
        return r"\{" + ",".join(map(str, piece.args)) + r"\}"
    if piece == sympy.EmptySet:
        return r"\emptyset"
    left, right = "(" if piece.left_open else "[", ")" if piece.right_open else "]"
    return f"{left}{sympy.latex(piece.start)},{sympy.latex(piece.end)}{right}"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(PIECES, st.sampled_from(["cup", "cap", "setminus"]), PIECES, PIECES)
def test_operations_agree_with_sympy(a: sympy.Set, sign: str, b: sympy.Set, c: sympy.Set) -> None:
    combined = {"cup": sympy.Union, "cap": sympy.Intersection, "setminus": sympy.Complement}[sign](a, b)
    (first,) = read_answers(rf"{_latex(a)} \{sign} {_latex(b)}", lenient=False)
    (second,) = read_answers(rf"{_latex(c)} \cup \emptyset", lenient=False)
    assert (region(first) == region(second)) == (combined == c)
    for point in [each / 2 for each in range(-10, 11)]:
        held = any(_holds(span, point) for span in region(first) or ())
        assert held == (sympy.Rational(point) in combined), point


def _holds(span: object, point: float) -> bool:
    low, high = span.low, span.high  # type: ignore[attr-defined]
    above = point > low or (point == low and span.low_closed)  # type: ignore[attr-defined]
    return above and (point < high or (point == high and span.high_closed))  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["(3,1)", r"(a,b) \cup (c,d)", "(1,2,3)", "x^2", "i"])
def test_what_is_no_set_of_known_numbers_has_no_region(text: str) -> None:
    (answer, *_) = read_answers(text, lenient=False)
    assert region(answer) is None
