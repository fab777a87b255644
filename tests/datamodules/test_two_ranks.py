"""Two real processes share what one would read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.data.sources import SyntheticSource
from datamodules import MathPromptDataModule
from tests.data.files import PROJECT, numbered_rows, write_json_lines
from tests.datamodules.learners import Recorder, trainer


def two_ranks(folder: Path) -> subprocess.CompletedProcess[str]:
    unreadable = [{"id": f"bad{i}", "problem": f"bad {i}", "answer": f"t(0,4]{i}"} for i in range(3)]
    write_json_lines(folder / "train.jsonl", numbered_rows(16))
    write_json_lines(folder / "golds.jsonl", [*numbered_rows(4), *unreadable, *numbered_rows(8)[4:]])
    return subprocess.run(
        [sys.executable, "-m", "tests.datamodules.two_ranks", str(folder)],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_share_the_batches_of_one(tmp_path: Path) -> None:
    done = two_ranks(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    module = Recorder()
    trainer().fit(module, MathPromptDataModule(SyntheticSource(), prompts_per_iteration=4, iterations=2))
    ranks = read(tmp_path, "synthetic")
    for index, (_, whole) in enumerate(module.seen):
        shares = [rank["seen"][index][1] for rank in ranks]
        assert [share[1] for share in shares] == [0, 2]
        assert [*shares[0][2], *shares[1][2]] == whole[2]
        assert [*shares[0][3], *shares[1][3]] == whole[3]
    assert [[first for first, _ in rank["validated"]] for rank in ranks] == [[0, 4], [2, 5]]
    heldout = [problem.id for problem in SyntheticSource("heldout", size=5).problems()]
    assert [ids for rank in ranks for _, ids in rank["validated"]] == [heldout[:2], heldout[4:], heldout[2:4], []]
    streamed = [text for rank in read(tmp_path, "streamed") for _, seen in rank["seen"] for text in seen[2]]
    assert len(set(streamed)) == len(streamed) == 8
    drawn = [text for rank in read(tmp_path, "whole") for _, seen in rank["seen"] for text in seen[2]]
    assert sorted(drawn) == [row["problem"] for row in numbered_rows(8)]
    assert done.stderr.count("golds: 8 of 11 rows kept; 3 malformed: ") == 1
    assert (tmp_path / "refusal.txt").read_text() == "data.prompts_per_iteration: 3 does not divide by the 2 ranks"
