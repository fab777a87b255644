"""Examples of code in the documentation: they run as they stand, and what is quoted from the code is the code's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.algorithm import applications
from app.algorithm.objective import ObjectiveSettings, policy_objective
from app.data.source import FiniteSource
from tests.algorithm import reference
from tests.algorithm.test_objective import batch
from tests.command_line import ROOT
from tests.docs.pages import FENCED, Page

PAGE = Page(ROOT / "CONTRIBUTING.md")
PYTHON = [content for language, content in PAGE.blocks if language == "python"]


def block(beginning: str) -> str:
    """The example that holds this line."""
    (found,) = [content for content in PYTHON if beginning in content]
    return found


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names


def test_the_trace_variant_is_what_its_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    written = run(block("def _initial("), **vars(applications))["_initial"]
    monkeypatch.setitem(applications.APPLICATIONS, "initial", written)
    monkeypatch.setattr(
        reference,
        "_row_terms",
        lambda z, length, application, q, *_: (
            [torch.tensor(x).exp().item() for x in z],
            [q**t for t in range(length)],
        ),
    )
    for normalise in (False, True):
        s = ObjectiveSettings(lam=0.9, application="initial", normalise_trace=normalise)
        loss, _ = policy_objective(**batch(), settings=s)
        assert loss.item() == pytest.approx(reference.objective(batch(), s), rel=1e-6)


def test_the_reward_scores_as_its_test_expects() -> None:
    from tests.rewards.test_functions import sample

    names = run(block("class RepetitionPenalty"), __name__="example")
    names = run(block("def test_values_counted_by_hand"), **names, pytest=pytest, sample=sample)
    marks = names["test_values_counted_by_hand"].pytestmark
    for text, expected in marks[0].args[1]:
        names["test_values_counted_by_hand"](text, expected)


def test_a_function_of_ones_own_is_a_reward() -> None:
    from tests.rewards.test_functions import sample

    (code,) = [content for language, content in Page(ROOT / "docs" / "rewards.md").blocks if language == "python"]
    assert run(code)["brevity"]([sample("x", n_tokens=10)]) == [pytest.approx(0.9)]


def test_the_source_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sums.csv"
    file.write_text('question,answer\n"What is 1 + 1, exactly?",2\nnothing,\n')
    imports = (
        "import csv\nfrom pathlib import Path\nfrom typing import Any\n"
        "from app.data.filters import NO_FILTERS, FilterSettings\nfrom app.data.problems import Problem\n"
        "from app.data.rows import AnswerFormat, MalformedPolicy, RowSettings\n"
        "from app.data.source import FiniteSource, read_rows\nfrom app.errors import ConfigurationError\n"
    )
    made = run(imports + block("class CsvSource"), __name__="example")["CsvSource"]
    source: FiniteSource = made(str(file), columns={"problem": "question"})
    assert [(p.problem, p.answer) for p in source.problems()] == [("What is 1 + 1, exactly?", "2")]
    assert source.report.malformed == [f"{file}: row 2: the answer is empty"]


def test_what_is_quoted_is_in_the_code() -> None:
    section = PAGE.text.partition("## How code reads here")[2].partition("\n## ")[0]
    quoted = [match["content"] for match in FENCED.finditer(section)]
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py"))
    assert len(quoted) == 2
    assert [content for content in quoted if content not in code] == []
