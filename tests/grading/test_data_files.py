"""The gold answers of real data sets: against themselves, rewritten, and against one another."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from app.grading.grader import Grader
from app.grading.matching import judge
from tests.grading.files import DATA, FILES, REASON, rows

pytestmark = pytest.mark.skipif(not FILES, reason=REASON)

#: Gold answers that are no mathematics; ids as in the files.
UNPARSEABLE = {"olympiadbench-1965", "olympiadbench-2045"}
_PLAIN = re.compile(r"-?\d+")
_IS_VALUE = re.compile(r"[=<>]|\\[lg]e|\\in\b|\\geqslant|\\approx|text|mbox|[A-Z]{2}|,")


def _distinct(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """A row for each distinct gold answer that is not a plain whole number, and for 50 that are."""
    answers: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in rows(path):
            answers.setdefault(row["answer"], row)
    whole = [answer for answer in answers if _PLAIN.fullmatch(answer)][50:]
    return {answer: row for answer, row in answers.items() if answer not in set(whole)}


def _rewritten(answer: str) -> list[str]:
    """The same answer in other words."""
    forms = [
        f"${answer}$",
        f"{answer}.",
        f" {answer}\u200b ",
        answer.replace(r"\frac", r"\dfrac"),
        answer.replace(r"\dfrac", r"\tfrac"),
        re.sub(r"(?<![A-Za-z\\]) | (?![A-Za-z0-9])(?<!\\ )", "", answer),
        answer.replace(",", ", ") if not re.search(r"\d,\\?!?\s?\d{3}", answer) else answer,
        answer.replace("pmatrix", "bmatrix"),
        answer.replace("-", "\u2212") if "text" not in answer else answer,
        answer.replace(r"^\circ", r"^{\circ}"),
        answer.replace(r"\pi", "π"),
    ]
    if "left" not in answer:
        forms.append(answer.replace("(", r"\left(").replace(")", r"\right)"))
    if not _IS_VALUE.search(answer) and not answer.endswith("."):
        forms += [f"w = {answer}"] + ([] if re.fullmatch(r"[A-Za-z]|.alpha|f\(.*\)", answer) else [f"{answer} = w"])
    return forms


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_gold_matches_itself_in_a_box(path: Path) -> None:
    items = [(row["answer"], rf"Thus \boxed{{{row['answer']}}}.", row) for row in rows(path)]
    with Grader() as grader:
        verdicts = grader.grade(items)
        unreadable = grader.unparseable_golds([(row["answer"], row) for _, _, row in items])
    assert [items[i][2]["id"] for i, verdict in enumerate(verdicts) if not verdict.correct] == []
    assert {items[i][2]["id"] for i in unreadable} <= UNPARSEABLE


def test_rewritten_golds_match() -> None:
    golds = {answer: row for answer, row in _distinct(FILES).items() if row["id"] not in UNPARSEABLE}
    wrong = [
        (answer, form)
        for answer, row in golds.items()
        for form in _rewritten(answer)
        if judge(answer, form, row) != "match"
    ]
    assert wrong == []


def test_several_answers_match_in_any_order() -> None:
    several = [row for row in rows(DATA / "benchmarks/olympiadbench_math.jsonl") if row.get("is_multiple_answer")]
    assert len(several) > 80
    for row in several:
        parts = re.split(r",(?![^()\[\]]*[)\]])", row["answer"])
        if row["id"] not in UNPARSEABLE:
            backwards = ", ".join(reversed(parts))
            assert judge(row["answer"], backwards, row) == "match", row["answer"]
            if len(parts) > 1:
                assert judge(row["answer"], ",".join(parts[:-1]), row) == "mismatch", row["answer"]


def test_golds_of_other_rows_do_not_match() -> None:
    golds = _distinct(FILES)
    hard = [answer for answer in golds if not _PLAIN.fullmatch(answer)]
    draw = random.Random(0)
    pairs = [(gold, other) for gold in hard for other in draw.sample(hard, 3) if other != gold]
    matched = [(gold, other) for gold, other in pairs if judge(gold, other, golds[gold]) == "match"]
    # equal values under other spellings do occur among thousands of answers; they are rare
    assert len(matched) <= len(pairs) / 1000, matched
