"""No change of the grader leaves its version as it was, and nothing else changes it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import app.grading
from app.evaluation.grader_version import hash_grader

VERSIONS = {"math-verify": "0.9.0", "sympy": "1.14"}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the grader's code."""
    assert app.grading.__file__ is not None
    return Path(shutil.copytree(Path(app.grading.__file__).parent, tmp_path / "grading"))


@pytest.mark.parametrize(
    "change",
    [
        lambda code: (code / "grader.py").write_text((code / "grader.py").read_text() + "\n"),
        lambda code: (code / "more.py").write_text(""),
        lambda code: (code / "table.json").write_text("{}"),
        lambda code: (code / "grader.py").rename(code / "grades.py"),
        lambda code: (code / "grader.py").unlink(),
        lambda code: shutil.copytree(code, code / "units"),
    ],
)
def test_every_change_of_the_code_is_another_version(code: Path, change: Callable[[Path], object]) -> None:
    before = hash_grader(code, VERSIONS)
    change(code)
    assert hash_grader(code, VERSIONS) != before


def test_a_package_of_another_version_is_another_grader(code: Path) -> None:
    assert hash_grader(code, VERSIONS) != hash_grader(code, {**VERSIONS, "sympy": "1.15"})


def test_where_the_code_lies_and_what_was_compiled_do_not_count(code: Path, tmp_path: Path) -> None:
    before = hash_grader(code, VERSIONS)
    shutil.rmtree(code / "__pycache__", ignore_errors=True)
    (code / ".grader.py.swp").write_text("an editor's")
    moved = code.rename(tmp_path / "elsewhere")
    assert hash_grader(moved, dict(reversed(VERSIONS.items()))) == before
