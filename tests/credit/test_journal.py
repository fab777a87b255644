"""The journal after kills, and when it is full."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.credit.journal import Journal, crowded, read_lines
from app.errors import ConfigurationError


def iterations(path: Path) -> list[int]:
    return [record["iteration"] for _, record in read_lines(path)]


def record(iteration: int, **more: Any) -> dict[str, Any]:
    return {"iteration": iteration, "text": "\ud800\u2028<", **more}


def test_what_a_kill_tore_is_left_out_and_what_came_after_the_checkpoint_too(tmp_path: Path) -> None:
    former = Journal(tmp_path / "a" / "credit.jsonl", 10**6)
    for iteration in (1, 2, 3):
        former.append([record(iteration), record(iteration, second=True)])
    with former.path.open("ab") as file:
        file.write(b'{"iteration": 4, "te')
    assert iterations(former.path) == [1, 1, 2, 2, 3, 3]
    journal = Journal(tmp_path / "b" / "credit.jsonl", 10**6)
    assert journal.continue_from(former.path, done=2) == 4
    journal.append([record(3)])
    assert iterations(journal.path) == [1, 1, 2, 2, 3]
    assert journal.continue_from(journal.path, done=0) == 0
    assert journal.path.read_bytes() == b""


def test_a_full_journal_keeps_the_whole_run_evenly(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "credit.jsonl", 3000)
    dropped = sum(journal.append([record(iteration, filler="x" * 60)]) for iteration in range(10, 2010, 10))
    kept = iterations(journal.path)
    assert dropped == 200 - len(kept)
    assert journal.path.stat().st_size <= 3000
    assert (kept[0], kept[-1]) == (10, 2000)
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert len(kept) > 10
    assert max(gaps) < 2010 / 4


def test_one_iteration_is_kept_whatever_its_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "credit.jsonl", 10)
    assert [journal.append([record(iteration)]) for iteration in (1, 2, 3)] == [0, 1, 1]
    assert iterations(journal.path) == [3]


def test_the_most_crowded_goes_first() -> None:
    assert crowded([1, 2, 3, 10]) == 2
    assert crowded([1, 8, 9, 10]) == 9
    assert crowded([5, 6]) == 5


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "credit.jsonl"
    path.write_bytes(b'{"iteration": 1}\n[]\n')
    with pytest.raises(ConfigurationError, match="line 2: no record of credit"):
        read_lines(path)
