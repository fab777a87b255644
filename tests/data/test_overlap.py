"""Exact and 13-gram overlap of a training set with benchmarks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.overlap import GRAM, BenchmarkIndex, letters_and_digits, overlap_table, word_grams
from app.data.problems import Problem

LONG = "A farmer has seventeen sheep and sells all but nine of them at the market on Monday morning ."


def problem(identifier: str, text: str) -> Problem:
    return Problem(id=identifier, problem=text, answer="1")


INDEX = BenchmarkIndex(
    {"short": [problem("s0", "What is $2 + 2$?"), problem("s1", "Why?")], "long": [problem("l0", LONG)]}
)


def test_exact_overlap_looks_at_letters_and_digits_only() -> None:
    assert letters_and_digits("What is $2 + 2$?") == "whatis22"
    assert INDEX.exact_matches("what is\n\\(2+2\\) ?") == {("short", "s0")}
    assert INDEX.exact_matches("what is 2 + 3 ?") == set()
    assert INDEX.exact_matches(LONG.upper()) == {("long", "l0")}


def test_gram_overlap_needs_thirteen_words_in_a_row() -> None:
    words = LONG.split()
    assert INDEX.gram_matches("Yesterday " + " ".join(words[2:15]) + " , they say") == {("long", "l0")}
    assert INDEX.gram_matches("Yesterday " + " ".join(words[2:14]) + " , they say") == set()
    assert INDEX.gram_matches("Why?") == set()


def test_the_report_counts_both_sides() -> None:
    training = [
        problem("t0", "what is 2+2"),
        problem("t1", "What is 2+2?"),
        problem("t2", "In short: " + LONG),
        problem("t3", "x"),
    ]
    report = INDEX.report(training)
    assert report["short"].problems == 2
    assert report["short"].exact == {"s0"}
    assert report["short"].training_exact == {"t0", "t1"}
    assert report["short"].gram == report["long"].exact == set()
    assert report["long"].gram == {"l0"}
    assert report["long"].training_gram == {"t2"}
    assert [INDEX.overlaps(p) for p in training] == [True, True, True, False]
    lines = overlap_table(report).splitlines()
    assert lines[1].split() == ["short", "2", "1", "0", "2"]
    assert lines[2].split() == ["long", "1", "0", "1", "1"]


@given(words=st.lists(st.sampled_from(["a", "b", "$", "1", "é"]), max_size=40))
@settings(derandomize=True, max_examples=100)
def test_grams_are_the_windows_of_the_words(words: list[str]) -> None:
    real = [word for word in words if word != "$"]
    windows = {tuple(real[start : start + GRAM]) for start in range(max(0, len(real) - GRAM + 1))}
    assert word_grams(" ".join(words)) == windows
