import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.evaluation.comparison import compare, format_comparison, main
from app.evaluation.metrics import macro_average, summarise
from app.evaluation.results import hash_problems, read_results, write_results
from app.evaluation.samples import Sample, SampleLog, merge_samples
from tests.evaluation.rows import make_row, random_rows

ROOT = Path(__file__).parents[2]


def evaluate(folder: Path, *benchmarks: list[Sample], samples: int = 1) -> Path:
    """A finished evaluation's folder."""
    scores, hashes = [], {}
    for rows in benchmarks:
        name = rows[0].benchmark
        with SampleLog(folder, name, "hash", samples) as log:
            log.append(rows)
        merged = merge_samples(folder, name, "hash", samples, list(dict.fromkeys(row.id for row in rows)))
        scores.append(summarise(merged, samples))
        hashes[name] = hash_problems({row.id: row for row in rows}.values())
    write_results(folder, scores, macro_average(scores), {}, "model", hashes)
    return folder


def greedy(verdicts: list[bool], benchmark: str = "toy") -> list[Sample]:
    return [make_row(key, correct=each, benchmark=benchmark) for key, each in enumerate(verdicts)]


def test_difference_interval_and_changed_problems(tmp_path):
    before = [each % 2 == 0 for each in range(100)]
    after = list(before)
    after[1], after[3], after[5], after[8] = True, True, True, False
    (found,) = compare(evaluate(tmp_path / "a", greedy(before)), evaluate(tmp_path / "b", greedy(after)[::-1]))
    assert (found.first, found.second) == (0.5, 0.52)
    assert found.newly_right == ["1", "3", "5"]
    assert found.newly_wrong == ["8"]
    assert found.difference.value == pytest.approx(0.02)
    # the paired standard error: four problems that changed, not a hundred that might
    error = math.sqrt((4 / 100 - 0.02**2) / 100)
    assert found.difference.high - found.difference.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.difference.low < 0 < found.difference.high


def test_a_folder_against_itself_is_exactly_zero(tmp_path):
    folder = evaluate(tmp_path, random_rows(20, 4), samples=4)
    (found,) = compare(folder, folder)
    assert tuple(found.difference) == (0, 0, 0)
    assert found.newly_right == found.newly_wrong == []


def test_sampled_problems_change_where_the_majority_of_samples_does(tmp_path):
    def rows(counts: list[int]) -> list[Sample]:
        return [make_row(key, index, index < right) for key, right in enumerate(counts) for index in range(4)]

    first = evaluate(tmp_path / "a", rows([0, 2, 3, 4, 4]), samples=4)
    second = evaluate(tmp_path / "b", rows([2, 3, 4, 3, 2]), samples=4)
    (found,) = compare(first, second)
    assert (found.newly_right, found.newly_wrong) == (["1"], ["4"])
    assert found.difference.value == pytest.approx((2 + 1 + 1 - 1 - 2) / 4 / 5)


def test_command_prints_the_table(tmp_path):
    first = evaluate(tmp_path / "a", greedy([True, False, False]), greedy([False] * 4, "aime24"))
    second = evaluate(tmp_path / "b", greedy([True, True, False]), greedy([False] * 4, "aime24"))
    command = [sys.executable, "-m", "app.evaluation.comparison", str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"A: {first}", f"B: {second}"]
    assert " ".join(lines[3].split()) == "benchmark problems A B B - A [95 %] newly right newly wrong"
    assert lines[5].split() == ["aime24", "4", "0.0", "0.0", "0.0", "[0.0,", "0.0]", "0", "0"]
    assert lines[6].split()[:5] == ["toy", "3", "33.3", "66.7", "33.3"]
    assert lines[7].split()[:5] == ["macro", "average", "16.7", "33.3", "16.7"]
    assert lines[8:] == ["toy, newly right: 1"]
    assert done.stdout == f"A: {first}\nB: {second}\n\n{format_comparison(compare(first, second))}\n"


def test_different_graders_are_told(tmp_path, capsys):
    first, second = (evaluate(tmp_path / name, greedy([True])) for name in "ab")
    results = read_results(second)
    results["versions"]["grader"] = "0123456789abcdef"
    (second / "results.json").write_text(json.dumps(results))
    assert main([str(first), str(second)]) == 0
    note = capsys.readouterr().out.splitlines()[2]
    assert note.startswith("note: A and B were graded by different graders, ")
    assert "and 0123456789abcdef" in note


def test_other_arithmetic_is_told_setting_by_setting(tmp_path, capsys):
    first, second = (evaluate(tmp_path / name, greedy([True])) for name in "ab")
    for folder, dtype in ((first, "float32"), (second, "bfloat16")):
        results = read_results(folder)
        engine = {"dtype": dtype, "versions": {"vllm": "1"}}
        results["settings"]["numerics"] = {"precision": "32-true", "engine": engine}
        (folder / "results.json").write_text(json.dumps(results))
    assert main([str(first), str(second)]) == 0
    assert capsys.readouterr().out.splitlines()[2] == (
        "note: A and B were computed differently: engine.dtype float32 and bfloat16"
    )
    assert main([str(first), str(first)]) == 0
    assert "note" not in capsys.readouterr().out


def test_one_benchmark_by_name(tmp_path, capsys):
    first = evaluate(tmp_path / "a", greedy([True]), greedy([True], "aime24"))
    second = evaluate(tmp_path / "b", greedy([True]))
    assert main([str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {second} has no results of aime24: use --benchmarks toy\n"
    assert main([str(first), str(second), "--benchmarks", "toy"]) == 0
    assert "aime24" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "do not hold the same problems (3 and 2; '2' is in one alone)"),
        (lambda rows: [*rows[:-1], replace(rows[-1], id="9")], "do not hold the same problems (3 and 3; '2'"),
        (lambda rows: [*rows[:-1], replace(rows[-1], answer="8")], "problem '2' has another text or gold"),
        (lambda rows: [*rows[:-1], replace(rows[-1], problem="?")], "problem '2' has another text or gold"),
    ],
)
def test_other_problems_are_refused_in_one_line(tmp_path, capsys, change, message):
    rows = greedy([True, True, False])
    folders = [evaluate(tmp_path / "a", rows), evaluate(tmp_path / "b", change(rows))]
    assert main([str(each) for each in folders]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_folders_that_are_no_results_are_refused(tmp_path, capsys):
    whole = evaluate(tmp_path / "a", greedy([True]))
    assert main([str(whole), str(tmp_path / "missing")]) == 2
    assert "is not the folder of a finished evaluation" in capsys.readouterr().err
    write_results(tmp_path / "empty", [], {}, {}, "model", {})
    with pytest.raises(ConfigurationError, match="the folders share none"):
        compare(whole, tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="hold no benchmarks"):
        compare(tmp_path / "empty", tmp_path / "empty")
    (whole / "samples" / "toy.jsonl").unlink()
    with pytest.raises(ConfigurationError, match="the evaluation of toy is not finished"):
        compare(whole, whole)
    (whole / "samples" / "toy.jsonl").touch()
    with pytest.raises(ConfigurationError, match="empty"):
        compare(whole, whole)


def test_one_benchmark_has_no_average(tmp_path):
    folder = evaluate(tmp_path, greedy([True, False]))
    assert "macro average" not in format_comparison(compare(folder, folder))


def test_other_tolerances_are_noted(tmp_path, capsys):
    one, other = (evaluate(tmp_path / name, greedy([True, False])) for name in "ab")
    assert main([str(one), str(other)]) == 0
    assert "note:" not in capsys.readouterr().out
    results = read_results(other)
    results["benchmarks"]["toy"]["data_hash"] = "that of other tolerances"
    (other / "results.json").write_text(json.dumps(results))
    assert main([str(one), str(other)]) == 0
    assert "note: A and B had other tolerances, units or versions of this project for toy" in capsys.readouterr().out
