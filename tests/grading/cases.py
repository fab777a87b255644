"""Reads the hand-labelled cases in ``cases.txt``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A gold answer, an answer, and whether they are equal."""

    category: str
    gold: str
    answer: str
    equal: bool
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


def read_cases() -> list[Case]:
    """All cases, in order."""
    category, cases = "", []
    for line in Path(__file__).with_name("cases.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("# "):
            category = line[2:]
        elif line:
            sign = "≡" if " ≡ " in line else "≢"
            gold, _, answer = line.partition(f" {sign} ")
            answer, _, extra = answer.partition(" ‖ ")
            cases.append(Case(category, gold, answer, sign == "≡", json.loads(extra or "{}")))
    return cases
