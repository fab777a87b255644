"""Thoughts: what of a completion lies outside them, and whether a prompt ends in one."""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.grading.answers import extract_answer
from app.grading.grader import Grader
from app.grading.thinking import KNOWN_MARKERS, Thinking, ThoughtMarkers, thinking_from_state

PAIRS = [pytest.param(each, id=each.opening) for each in KNOWN_MARKERS]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_completion_that_begins_in_a_thought_has_no_answer_before_it_ends(pair: ThoughtMarkers) -> None:
    opened = Thinking().after(f"<|assistant|>{pair.opening}\n")
    assert opened.opened == pair.opening
    cut_off = opened.read(r"Maybe \boxed{2}? Hmm wait")
    assert extract_answer(cut_off.visible) is None
    assert cut_off.unfinished
    whole = opened.read(rf"Maybe \boxed{{2}}? {pair.closing} So \boxed{{3}}.")
    assert extract_answer(whole.visible) == "3"
    assert whole.is_one_thought_first


@pytest.mark.parametrize("pair", PAIRS)
def test_a_thought_that_the_prompt_closes_is_not_open(pair: ThoughtMarkers) -> None:
    """As templates write it where thinking is switched off."""
    assert Thinking().after(f"<|assistant|>{pair.opening}\n\n{pair.closing}\n\n").opened == ""


@pytest.mark.parametrize("pair", [each for each in PAIRS if not each.values[0].prompt_only])
def test_a_thought_within_a_completion_is_left_out(pair: ThoughtMarkers) -> None:
    read = Thinking().read(rf"{pair.opening}\boxed{{2}}{pair.closing}\boxed{{3}}")
    assert read.visible == r"\boxed{3}"
    assert read.is_one_thought_first
    assert Thinking().read(rf"\boxed{{1}} {pair.opening}\boxed{{2}}").visible == r"\boxed{1} "


def test_a_sentence_begins_a_thought_in_a_prompt_alone() -> None:
    assert extract_answer(r"Here are my reasoning steps: 1 + 1. \boxed{2}") == "2"


def test_a_marker_that_ends_other_things_too_ends_no_thought_alone() -> None:
    assert extract_answer(r"\boxed{2}<|end|>") == "2"
    assert extract_answer(r"\boxed{2}</think>") is None


def test_a_thought_may_speak_of_thoughts() -> None:
    """R1 and QwQ sometimes write the opening marker again that the prompt holds."""
    opened = Thinking(opened="<think>")
    assert opened.read("<think>\nHmm.\n</think>\n5").visible == "\n5"
    assert Thinking().read("<think>It asks for <think> tags.</think>5").visible == "5"
    assert Thinking().read("<think>Not [THINK] or </seed:think>.</think>5").visible == "5"


def test_what_is_visible_of_a_visible_text_is_all_of_it() -> None:
    """The grader leaves thoughts out of whatever it is given, what rewards have left of a completion included."""
    with Grader(1) as grader:
        for text, opened in ((r"a</think>\boxed{4}", "<think>"), (r"\boxed{4}", "")):
            visible = Thinking(opened=opened).read(text).visible
            assert grader.grade([("4", visible)])[0].correct
        assert grader.grade([("4", Thinking(opened="<think>").read(r"\boxed{4}").visible)])[0].reason == "no_answer"


PIECES = ["<think>", "</think>", "[THINK]", "[/THINK]", "<|end|>", "x", r"\boxed{1}"]


@settings(derandomize=True, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=10), st.sampled_from(["", "<think>", "[THINK]"]))
def test_the_opening_marker_in_the_prompt_reads_as_one_in_the_completion(pieces: list[str], opened: str) -> None:
    text = "".join(pieces)
    in_prompt, in_completion = Thinking(opened=opened).read(text), Thinking().read(opened + text)
    assert in_prompt == in_completion
    assert Thinking().read(in_prompt.visible).visible == in_prompt.visible


def test_it_comes_back_from_a_checkpoint() -> None:
    own = Thinking((ThoughtMarkers("<a>", "<b>", closing_alone=False),), "<a>")
    assert thinking_from_state(asdict(own)) == own
