"""Sample rows made up for the tests of this folder."""

import random
from typing import Any

from app.evaluation.samples import Sample


def make_row(problem: int | str, index: int = 0, correct: bool = True, **changes: Any) -> Sample:
    cells: dict[str, Any] = {
        "benchmark": "toy",
        "id": str(problem),
        "problem": f"what is {problem} ?",
        "answer": str(problem),
        "index": index,
        "completion": f"\\boxed{{{problem}}}",
        "extracted": str(problem),
        "correct": correct,
        "reason": "match" if correct else "mismatch",
        "cluster": 0 if correct else 1,
        "n_tokens": 7,
        "finish_reason": "stop",
        "seed": 11,
        "grader": "now",
    }
    return Sample(**(cells | changes))


def random_rows(problems: int, samples: int, seed: int = 0, benchmark: str = "toy") -> list[Sample]:
    """Rows that differ in all that metrics read."""
    draw = random.Random(seed)
    rows = []
    for problem in range(problems):
        for index in range(samples):
            correct = draw.random() < 0.4
            reason = "match" if correct else draw.choice(["mismatch", "no_answer", "timeout"])
            cluster = 0 if correct else draw.choice([1, 2]) if reason == "mismatch" else None
            length = draw.randint(1, 40)
            finish = "length" if length == 40 else draw.choice(["stop", "stop", "length"])
            changes = {"reason": reason, "cluster": cluster, "n_tokens": length, "finish_reason": finish}
            rows.append(make_row(problem, index, correct, benchmark=benchmark, **changes))
    return rows
