"""The registry on the real datasets, where their files are."""

import pytest

from app.data.filters import FilterSettings
from app.data.overlap import BenchmarkIndex
from app.data.problems import Problem
from app.data.sources import JsonLinesSource, RegisteredSource
from tests.data.files import REAL_FOLDER, needs_real_files

pytestmark = needs_real_files

SIZES = {
    "gsm8k": 7473,
    "math12k": 12000,
    "math500": 500,
    "aime24": 30,
    "amc23": 40,
    "amc": 83,
    "olympiadbench": 675,
    "minerva": 272,
    "dapo17k": 17398,
}
BENCHMARKS = ("aime24", "amc23", "amc", "math500", "olympiadbench", "minerva")


def problems(name: str) -> list[Problem]:
    return RegisteredSource(name, folder=str(REAL_FOLDER)).problems()


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_every_row_of_every_file_is_a_problem(name: str, size: int) -> None:
    source = RegisteredSource(name, folder=str(REAL_FOLDER), malformed="refuse")
    assert len(source.problems()) == size
    assert len({problem.id for problem in source.problems()}) == size


@pytest.mark.parametrize(
    ("file", "column", "answer_format"),
    [
        ("train/gsm8k_train", "solution", "after_hashes"),
        ("train/gsm8k_test", "solution", "after_hashes"),
        ("benchmarks/math500", "solution", "last_box"),
        ("benchmarks/aime24", "answer_raw", "integer"),
        ("benchmarks/amc23", "answer_raw", "integer"),
        ("benchmarks/amc", "answer_raw", "integer"),
    ],
)
def test_answers_extracted_from_the_source_are_the_answers(file: str, column: str, answer_format: str) -> None:
    path = str(REAL_FOLDER / f"{file}.jsonl")
    extracted = JsonLinesSource(path, columns={"answer": column}, answer_format=answer_format)  # type: ignore[arg-type]
    given = JsonLinesSource(path).problems()
    assert [problem.answer for problem in extracted.problems()] == [problem.answer for problem in given]


def test_boxes_of_math_hold_the_answers_but_for_two_empty_ones() -> None:
    path = str(REAL_FOLDER / "train" / "math_train.jsonl")
    extracted = JsonLinesSource(path, columns={"answer": "solution"}, answer_format="last_box")
    given = {problem.id: problem.answer for problem in JsonLinesSource(path).problems()}
    assert all(problem.answer == given[problem.id] for problem in extracted.problems())
    assert [line.split(": ", 1)[1] for line in extracted.report.malformed] == [
        "row 5342: the answer is empty",
        "row 5344: the answer is empty",
    ]


def test_levels_and_subjects_of_math500() -> None:
    hard = RegisteredSource(
        "math500", folder=str(REAL_FOLDER), filters=FilterSettings(levels=[5], subjects=["algebra"])
    )
    assert {problem.extra["subject"] for problem in hard.problems()} == {"Algebra"}
    assert 0 < len(hard.problems()) < 134 < sum(hard.report.left_out.values())


def test_what_olympiadbench_needs_for_grading_is_kept() -> None:
    extra = [problem.extra for problem in problems("olympiadbench")]
    assert sum(bool(row.get("unit")) for row in extra) == 8
    assert sum(bool(row.get("error")) for row in extra) == 1


def test_known_overlap_of_the_training_sets_with_the_benchmarks() -> None:
    index = BenchmarkIndex({name: problems(name) for name in BENCHMARKS})
    dapo, math = (index.report(problems(name)) for name in ("dapo17k", "math12k"))
    assert {name: len(found.exact) for name, found in dapo.items()} == {
        "aime24": 0,
        "amc23": 8,
        "amc": 14,
        "math500": 7,
        "olympiadbench": 10,
        "minerva": 0,
    }
    assert len(math["olympiadbench"].exact) == 3
    # One pair differs by a sign alone, z^4 + z^2 + 1 and z^4 - z^2 + 1, and so by no letter and no digit.
    assert len(math["math500"].exact) == 1
