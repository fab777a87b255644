"""Where local copies of public data sets are, for tests that run only where they exist."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("GRPO_LAMBDA_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
REASON = f"no data sets in {DATA}; set GRPO_LAMBDA_DATA to a folder with benchmarks/ and train/ JSON-lines files"
FILES = sorted(DATA.glob("benchmarks/*.jsonl")) + sorted(DATA.glob("train/*.jsonl"))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
