"""The hand-labelled cases, and properties that every one of them has."""

from collections import Counter

import pytest

from app.grading.matching import judge
from tests.grading.cases import Case, read_cases

CASES = read_cases()


def _id(case: Case) -> str:
    return f"{case.gold} {'=' if case.equal else '!='} {case.answer}".encode("ascii", "backslashreplace").decode()


def test_there_are_cases_of_both_kinds_in_every_category() -> None:
    kinds = Counter((case.category, case.equal) for case in CASES)
    categories = {category for category, _ in kinds}
    assert len(CASES) > 700
    assert all(kinds[category, False] for category in categories if category != "Unicode and spelling")


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_hand_labelled_case(case: Case) -> None:
    assert judge(case.gold, case.answer, case.extra) == ("match" if case.equal else "mismatch")


@pytest.mark.parametrize(
    "dress", ["${}$", r"\( {} \)", "{}.", " {} ", "\u200b{}", r"\displaystyle {}", r"\boldsymbol{{{}}}"]
)
def test_dress_changes_no_verdict(dress: str) -> None:
    """Spelling around an answer is without meaning, for right and for wrong answers."""
    changed = [
        case
        for case in CASES
        if not case.category.startswith(("currency", "not answers", "words", "lead-ins", "further"))
        and (judge(case.gold, dress.format(case.answer), case.extra) == "match") != case.equal
    ]
    assert not changed


def test_every_gold_answer_equals_itself() -> None:
    assert {case.gold for case in CASES if judge(case.gold, case.gold, case.extra) != "match"} == set()
