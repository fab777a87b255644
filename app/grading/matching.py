"""One gold answer against one answer: readings, equality, and what is left for math-verify."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from app.grading.answer_types import Answer, Members, Numeral
from app.grading.comparing.equality import GoldOptions, equal_answers, gold_options
from app.grading.comparing.symbolic import equal_symbolic, parse_symbolic
from app.grading.reading.layout import without_clause
from app.grading.reading.normalise import normalise
from app.grading.reading.plain_text import strip_lead_in
from app.grading.reading.readings import read_answers
from app.grading.reading.units import canonical_unit

Judgement = Literal["match", "mismatch", "unparseable_gold"]


def judge(gold: str, answer: str | None, extra: Mapping[str, Any]) -> Judgement:
    """Whether ``answer`` is right; with None, whether the gold answer can be read at all (then "mismatch").

    Args:
        gold: the dataset's answer.
        answer: what the completion's last box holds.
        extra: the gold answer's row: ``error``, ``unit`` and ``is_multiple_answer`` are read.
    """
    options = gold_options(extra, canonical_unit)
    verdict = _judge(gold, answer, options)
    if verdict == "match" or (answer is None and verdict == "mismatch"):
        return verdict
    stated, clause = without_clause(spelling(gold))
    given, own = (answer, "") if answer is None else without_clause(spelling(answer))
    if not (clause or own) or (clause and own and clause != own):
        return verdict
    return _judge(stated if clause else gold, given if own else answer, options)


def _judge(gold: str, answer: str | None, options: GoldOptions) -> Judgement:
    readings = _gold_readings(gold, options.multiple)
    symbolic = None if readings else parse_symbolic(spelling(gold))
    if answer is not None and same_spelling(gold, answer):
        return "match"
    if not readings and symbolic is None:
        return "unparseable_gold"
    if answer is None:
        return "mismatch"
    if readings and _any_equal(readings, answer, options):
        return "match"
    return "match" if _equal_beyond(gold, answer, readings) else "mismatch"


def spelling(text: str) -> str:
    """Normalised text without lead-in and final punctuation."""
    return strip_lead_in(normalise(text))


def same_spelling(gold: str, answer: str) -> bool:
    """Whether two texts are alike but for spelling and spaces; a space between two digits or letters counts."""
    first, second = (re.sub(r"(?<!\w) | (?!\w)", "", spelling(each)) for each in (gold, answer))
    return bool(first) and first == second


@lru_cache(maxsize=4096)
def _gold_readings(gold: str, multiple: bool) -> list[Answer]:
    readings = read_answers(gold, lenient=False)
    lists: list[Answer] = [reading for reading in readings if isinstance(reading, Members)]
    return lists if multiple and lists else readings


def _any_equal(readings: list[Answer], answer: str, options: GoldOptions) -> bool:
    if any(isinstance(reading, Numeral) and reading.digits == spelling(answer).upper() for reading in readings):
        return True  # digits that are letters, without their base
    return any(
        equal_answers(reading, other, options) for other in read_answers(answer, lenient=True) for reading in readings
    )


def _equal_beyond(gold: str, answer: str, readings: list[Answer]) -> bool:
    """math-verify's verdict where at least one of the two is beyond the reader."""
    if readings and read_answers(answer, lenient=False):
        return False
    if readings:
        second = parse_symbolic(spelling(answer))
        first = None if second is None else parse_symbolic(spelling(gold), any_command=True)
    else:
        first = parse_symbolic(spelling(gold))
        second = parse_symbolic(spelling(answer), any_command=True)
    return first is not None and second is not None and equal_symbolic(first, second)
