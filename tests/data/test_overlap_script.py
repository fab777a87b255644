"""The script that prints the overlap report."""

import subprocess
import sys
from pathlib import Path

from tests.data.files import PROJECT, write_json_lines


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "benchmarks" / "data_overlap.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_it_prints_a_table_for_each_training_set(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "math500.jsonl", [{"problem": "What is 2 + 2 ?", "answer": "4"}])
    write_json_lines(tmp_path / "math_train.jsonl", [{"problem": "what is $2+2$?", "answer": "4"}])
    done = run("--folder", str(tmp_path), "--train", "math12k", "--benchmarks", "math500")
    assert done.returncode == 0, done.stderr
    heading, columns, row = done.stdout.strip().splitlines()
    assert heading == "math12k: 1 problems"
    assert columns.split() == ["benchmark", "problems", "exact", "13-gram", "training", "rows"]
    assert row.split() == ["math500", "1", "1", "0", "1"]


def test_it_names_mistakes_in_one_line(tmp_path: Path) -> None:
    done = run("--folder", str(tmp_path), "--train", "math12k", "--benchmarks", "math50")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("name: no dataset is registered as 'math50'; did you mean 'math500'")
    assert len(done.stderr.strip().splitlines()) == 1
