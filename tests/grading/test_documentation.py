"""The examples in docs/grading.md are true."""

import json
import re
from pathlib import Path
from pydoc import locate

import pytest

from app.grading.answers import extract_answer
from app.grading.matching import judge
from app.grading.thinking import KNOWN_MARKERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "grading.md"
SPAN = r"`((?:[^`])*)`"


def _rows(columns: int) -> list[list[str]]:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if len(row) == columns and row[0] not in ("Rule", "Convention", "Family")]


def _pairs() -> list[tuple[str, str, str, str]]:
    found = []
    for row in _rows(4):
        for sign, cell in (("≡", row[2]), ("≢", row[3])):
            for example in cell.split("<br>"):
                match = re.fullmatch(rf"{SPAN} {sign} {SPAN}(?: ‖ {SPAN})?", example)
                assert match, f"unreadable example {example!r}"
                found.append((match[1], sign, match[2], match[3] or "{}"))
    return found


def test_the_tables_are_found() -> None:
    assert len(_extractions()) >= 5
    assert len(_rows(4)) >= 30
    assert len(_pairs()) >= 120


@pytest.mark.parametrize(("gold", "sign", "answer", "extra"), _pairs())
def test_examples_of_equality(gold: str, sign: str, answer: str, extra: str) -> None:
    assert judge(gold, answer, json.loads(extra)) == ("match" if sign == "≡" else "mismatch")


def _extractions() -> list[list[str]]:
    return [row for row in _rows(3) if "→" in row[2]]


def test_the_markers_of_thoughts_are_those_that_the_grader_knows() -> None:
    shown = [(row[1], row[2]) for row in _rows(3) if "→" not in row[2]]
    assert shown == [(f"`{each.opening}`", f"`{each.closing}`") for each in KNOWN_MARKERS]


def test_examples_of_extraction() -> None:
    for row in _extractions():
        for example in row[2].split("<br>"):
            match = re.fullmatch(rf"{SPAN} → (?:{SPAN}|no answer)", example)
            assert match, f"unreadable example {example!r}"
            assert extract_answer(match[1]) == match[2], example


def test_what_the_page_names_of_the_code_exists() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    methods = [f"app.grading.grader.{name}" for name in re.findall(r"`(Grader\.\w+)`", text)]
    dotted = re.findall(r"`(app(?:\.\w+)+)`", text) + methods
    assert len(dotted) >= 2
    assert [name for name in dotted if locate(name) is None] == []
    assert [
        path for path in re.findall(r"`((?:app|tests)/[\w/.]+)`", text) if not (DOCUMENT.parents[1] / path).exists()
    ] == []
