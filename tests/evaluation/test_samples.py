import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.evaluation.metrics import summarise
from app.evaluation.samples import SampleLog, merge_samples, read_samples, regrade_samples
from tests.evaluation.rows import make_row, random_rows

HASH = "0123456789abcdef"
ROOT = Path(__file__).parents[2]


def write(folder: Path, rows, samples: int = 2, rank: int = 0, settings: str = HASH) -> None:
    with SampleLog(folder, "toy", settings, samples, rank) as log:
        log.append(rows)


def part(folder: Path, rank: int = 0) -> Path:
    return folder / "samples" / f"toy.rank{rank}.jsonl"


def test_rows_come_back_as_they_were_whatever_the_text(tmp_path):
    texts = ["", "a\nb\r\n", "\ud800 lone", "\u2028 line", "\x00", '"\\boxed{½}"', "😀" * 3]
    rows = [make_row(text, completion=text, extracted=None, cluster=None) for text in texts]
    write(tmp_path, rows, samples=1)
    assert merge_samples(tmp_path, "toy", HASH, 1, texts) == rows
    assert read_samples(tmp_path, "toy") == rows
    first = json.loads((tmp_path / "samples" / "toy.jsonl").read_text().splitlines()[0])
    assert first["settings"] == HASH
    assert first["problem"] == "what is  ?"


def test_every_cut_of_the_file_resumes_to_the_same_scores(tmp_path):
    rows = random_rows(problems=3, samples=2)
    write(tmp_path / "whole", rows)
    content = part(tmp_path / "whole").read_bytes()
    expected = summarise(merge_samples(tmp_path / "whole", "toy", HASH, 2, ["0", "1", "2"]), 2)
    for cut in range(0, len(content) + 1, 13):
        folder = tmp_path / str(cut)
        part(folder).parent.mkdir(parents=True)
        part(folder).write_bytes(content[:cut])
        with SampleLog(folder, "toy", HASH, 2) as log:
            whole_lines = content[:cut].count(b"\n")
            assert log.done == {str(each) for each in range(whole_lines // 2)}
            log.append([row for row in rows if row.id not in log.done])
        merged = merge_samples(folder, "toy", HASH, 2, ["0", "1", "2"])
        assert merged == rows
        assert summarise(merged, 2) == expected


WRITER = """
import sys
from app.evaluation.samples import SampleLog
from tests.evaluation.rows import make_row
with SampleLog(sys.argv[1], "toy", sys.argv[2], samples=2) as log:
    for problem in range(10**6):
        log.append([make_row(problem, index, completion="short") for index in range(2)])
        print(problem, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_append_returned_for(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), HASH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        told = [0, *map(int, process.stdout.read().split())]
    with SampleLog(tmp_path, "toy", HASH, samples=2) as log:
        assert set(map(str, told)) <= log.done
        assert len(log.done) <= len(told) + 1
    assert part(tmp_path).read_bytes().count(b"\n") == 2 * len(log.done)


def test_incomplete_problems_are_dropped(tmp_path):
    rows = [make_row("a", 0), make_row("b", 0), make_row("a", 1), make_row("c", 1)]
    write(tmp_path, rows)
    with SampleLog(tmp_path, "toy", HASH, samples=2) as log:
        assert log.done == {"a"}
        log.append([make_row("c", 0), make_row("c", 1), make_row("b", 0), make_row("b", 1)])
    merged = merge_samples(tmp_path, "toy", HASH, 2, ["a", "b", "c"])
    assert [(row.id, row.index) for row in merged] == [(key, index) for key in "abc" for index in (0, 1)]


def test_ranks_write_parts_and_all_see_what_is_done(tmp_path):
    rows = random_rows(problems=6, samples=2)
    for rank in range(3):
        write(tmp_path, [row for row in rows if int(row.id) % 3 == rank], rank=rank)
    # rank 2 was killed in a write, and the evaluation goes on with two ranks
    torn = part(tmp_path, 2).read_bytes()[:-20]
    part(tmp_path, 2).write_bytes(torn)
    logs = [SampleLog(tmp_path, "toy", HASH, 2, rank) for rank in range(2)]
    assert [log.done for log in logs] == [frozenset("01234")] * 2
    logs[1].append([row for row in rows if row.id == "5"])
    for log in logs:
        log.close()
        log.close()
    assert merge_samples(tmp_path, "toy", HASH, 2, list("012345")) == rows
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["toy.jsonl"]
    assert SampleLog(tmp_path, "toy", HASH, 2).done == frozenset("012345")
    assert merge_samples(tmp_path, "toy", HASH, 2, list("012345")) == rows


def test_a_problem_of_two_ranks_is_taken_from_the_lower(tmp_path):
    for rank in (10, 2):  # 10 sorts before 2 as text
        write(tmp_path / "one", [make_row("a", completion=f"rank {rank}")], samples=1, rank=rank)
        (tmp_path / "samples").mkdir(exist_ok=True)
        part(tmp_path / "one", rank).rename(part(tmp_path, rank))
    (row,) = merge_samples(tmp_path, "toy", HASH, 1, ["a"])
    assert row.completion == "rank 2"


def test_a_merge_needs_exactly_the_benchmarks_problems(tmp_path):
    write(tmp_path, [make_row("a"), make_row("b")], samples=1)
    with pytest.raises(ValueError, match="1 problems are missing, 0 are not of it"):
        merge_samples(tmp_path, "toy", HASH, 1, ["a", "b", "c"])
    with pytest.raises(ValueError, match="0 problems are missing, 1 are not of it"):
        merge_samples(tmp_path, "toy", HASH, 1, ["a"])
    assert part(tmp_path).exists()
    with pytest.raises(ConfigurationError, match="not finished"):
        read_samples(tmp_path, "toy")


@pytest.mark.parametrize("merged", [False, True])
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path, merged):
    write(tmp_path, [make_row("a")], samples=1)
    if merged:
        merge_samples(tmp_path, "toy", HASH, 1, ["a"])
    with pytest.raises(ConfigurationError, match=r"row 1: made with other settings, .* another output folder"):
        SampleLog(tmp_path, "toy", "fedcba9876543210", samples=1)
    assert SampleLog(tmp_path, "toy", HASH, samples=1).done == {"a"}


def test_samples_of_another_grader_get_new_verdicts_and_keep_their_completions(tmp_path):
    def new_verdicts(rows):
        asked.extend(rows)
        return [replace(row, correct=False, grader="now") for row in rows]

    asked = []
    old = [make_row(key, index, grader="before") for key in "ab" for index in range(2)]
    write(tmp_path, [*old[:2], make_row("c", 0), make_row("c", 1), *old[2:3]])  # b is not complete
    write(tmp_path, old[2:], rank=1)
    assert regrade_samples(tmp_path, "toy", HASH, 2, "now", new_verdicts) == 4
    assert asked == old
    assert SampleLog(tmp_path, "toy", HASH, samples=2).done == {"a", "b", "c"}
    merged = merge_samples(tmp_path, "toy", HASH, 2, ["a", "b", "c"])
    assert [row.correct for row in merged] == [False] * 4 + [True] * 2
    assert [replace(row, correct=True, grader="before") for row in merged[:4]] == old
    content = (tmp_path / "samples" / "toy.jsonl").read_bytes()
    assert regrade_samples(tmp_path, "toy", HASH, 2, "now", new_verdicts) == 0
    assert (tmp_path / "samples" / "toy.jsonl").read_bytes() == content
    assert regrade_samples(tmp_path, "toy", HASH, 2, "later", new_verdicts) == 6  # the merged file too
    with pytest.raises(ConfigurationError, match="made with other settings"):
        regrade_samples(tmp_path, "toy", "fedcba9876543210", 2, "now", new_verdicts)


def test_benchmarks_in_one_folder_keep_apart(tmp_path):
    write(tmp_path, [make_row("a")], samples=1)
    with SampleLog(tmp_path, "toy-2", "other", samples=1) as log:
        assert log.done == frozenset()
        log.append([make_row("a", benchmark="toy-2")])
    assert SampleLog(tmp_path, "toy", HASH, samples=1).done == {"a"}


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b"[1]", b"\x00\xff", b"null"])
def test_a_line_that_is_no_sample_is_named(tmp_path, line):
    write(tmp_path, [make_row("a")], samples=1)
    with part(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ConfigurationError, match=r"toy\.rank0\.jsonl, row 2: not a sample") as caught:
        SampleLog(tmp_path, "toy", HASH, samples=1)
    assert "\n" not in str(caught.value)


def test_misuse_is_refused(tmp_path):
    write(tmp_path, [make_row("a")], samples=1)
    with SampleLog(tmp_path, "toy", HASH, samples=1) as log:
        with pytest.raises(ValueError, match="sample 0 of problem 'a' is in"):
            log.append([make_row("a")])
        with pytest.raises(ValueError, match="a row of other"):
            log.append([make_row("b", benchmark="other")])
        log.append([make_row("b")])
        with pytest.raises(ValueError, match="sample 0 of problem 'b' is in"):
            log.append([make_row("b")])
    for name in ("a/b", "a.rank0", "", "ünder"):
        with pytest.raises(ConfigurationError, match="benchmark name"):
            SampleLog(tmp_path, name, HASH, samples=1)
