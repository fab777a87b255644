"""Extraction: the last complete box outside thinking."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.grading.answers import boxed_answers, extract_answer, strip_thinking


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{5} then \boxed{6}", "6"),
        (r"\fbox{6}", "6"),
        (r"\boxed {5}", "5"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1\\ 2}", r"1\\ 2"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 12.", "12"),
        (r"\boxed5", "5"),
        (r"\boxedfoo{5}", None),
        ("5", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{   }", None),
        (r"\boxed{5", None),
        (r"\boxed{5} \boxed{6", "5"),
        (r"{\boxed{5}}", "5"),
        (r"\boxed", None),
        # sentences about boxes
        (r"The answer is \boxed{42}. I put the final answer within \boxed as asked.", "42"),
        (r"$\boxed{42}$ (final answer inside \boxed{})", "42"),
        (r"\boxed{42} (as asked, in `\boxed`)", "42"),
        (r"\boxed{42}, inside \boxed{}, not \boxed.", "42"),
        (r"\boxed{42}, in the form \boxed{...} or \boxed{\ldots} or \boxed{ \, }", "42"),
        (r"Within \boxed as asked: \boxed 42", "42"),
        (r"I write it in \boxed as asked.", None),
        (r"\boxed x", "x"),
        (r"\boxed A.", "A"),
        (r"\boxed x-y", "x-y"),
        (r"\boxed -5", "-5"),
        (r"\boxed{as}", "as"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("<think>\\boxed{1}</think> 2", None),
        ("\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{2}<think>\\boxed{1}", "2"),
        ("<think>a<think>b</think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("<THINK>\\boxed{1}</THINK>\\boxed{2}", "2"),
        ("<think>\\boxed{1", None),
        ("<think>x</think><answer>\\boxed{3}</answer>", "3"),
        ("\\boxed{a\x00b}", "a\x00b"),
        ("\\boxed{\ud800}", "\ud800"),
    ],
)
def test_extracts(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


def test_boxes_come_in_the_order_in_which_they_close() -> None:
    assert boxed_answers(r"\boxed{a \boxed{b}} \fbox{c}") == ["b", r"a \boxed{b}", "c"]


BALANCED = st.recursive(
    st.text(alphabet="ab1+ ", max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(lambda x: "{" + "".join(x) + "}"),
)


@settings(derandomize=True, max_examples=200)
@given(content=BALANCED, before=st.text(alphabet="ab{}1 ", max_size=8), after=st.text(alphabet="ab1 ", max_size=8))
def test_a_balanced_box_is_found_in_any_surroundings(content: str, before: str, after: str) -> None:
    found = extract_answer(before + r"\boxed{" + content + "}" + after)
    assert found == (content.strip() or None)


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from(["<think>", "</think>", "x", r"\boxed{1}"]), max_size=12).map("".join))
def test_nothing_before_the_last_closing_tag_survives(text: str) -> None:
    kept = strip_thinking(text)
    assert "think>" not in kept
    if "</think>" in text and "<think>" not in text:
        assert kept == text.rpartition("</think>")[2]
