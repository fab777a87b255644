"""Text without sense: every judgement is one of three, and reading a text twice gives the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.grading.matching import judge, spelling

FRAGMENTS = [
    *"(){}[]|\\$^_=<>,;:.!'%&+-*/~ ",
    *("1", "12", "123", "1.5", "1e5", "0.", "x", "e", "i", "sin", "east ", "km", " and ", " or ", "a.m.", "9:24"),
    *(r"\frac", r"\sqrt", r"\text{", r"\text{a}", r"\left", r"\right", r"\pm", r"\cup", r"\in", r"\le", r"\infty"),
    *(r"\{", r"\}", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\\\", r"\circ", r"\log", r"\pi", r"\overline", r"\sum"),
    *("²", "½", "√", "°", "−", "\u200b", "１", "\x00", "\ud800", "\ue000", "\ue001", "\ue010", "⁄", "≤"),
]
SOUP = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
JUDGEMENTS = ("match", "mismatch", "unparseable_gold")


@settings(derandomize=True, max_examples=400, deadline=None)
@given(SOUP, SOUP)
def test_any_two_texts_get_a_judgement(gold: str, answer: str) -> None:
    assert judge(gold, answer, {}) in JUDGEMENTS
    assert judge(gold, None, {}) in JUDGEMENTS[1:]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(SOUP)
def test_a_text_matches_itself(text: str) -> None:
    assert judge(text, text, {}) == ("match" if spelling(text).strip() else "unparseable_gold")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_unicode_is_survived(text: str) -> None:
    assert judge("x+1", text, {}) in JUDGEMENTS[:2]
