"""Files for the tests of the data floor: small ones written on the spot, and the real ones where they are."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
REAL_FOLDER = Path(os.environ.get("GRPO_LAMBDA_DATA", PROJECT.parent / "shared" / "data"))

needs_real_files = pytest.mark.skipif(
    not (REAL_FOLDER / "benchmarks" / "math500.jsonl").is_file(),
    reason=f"the real datasets are not in {REAL_FOLDER}: name their folder in GRPO_LAMBDA_DATA",
)


def write_json_lines(path: Path, rows: Iterable[Any]) -> str:
    """Writes one JSON value a line; returns the path as a configuration would hold it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered_rows(count: int) -> list[dict[str, str]]:
    """``count`` rows: problem ``What is 3 + 1 ?`` with answer ``4`` and so on."""
    return [{"id": f"n{i}", "problem": f"What is {i} + 1 ?", "answer": str(i + 1)} for i in range(count)]
