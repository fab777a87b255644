"""``docs/templates.md``: what is read out of a template, and that the page is of today."""

import pytest

from benchmarks import templates as table
from tests.data import templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.BASE_CHAT, table.Row("x", end="<|im_end|>", system="none")),
        (templates.OPENS_A_THOUGHT, table.Row("x", opened="<think>", end="<|im_end|>", system="none")),
        (templates.REASONING, table.Row("x", opened="<muse>", end="<|im_end|>", system="none")),
        (templates.DEFAULT_SYSTEM, table.Row("x", end="<|im_end|>", system="left out")),
        (templates.OBSTINATE_SYSTEM, table.Row("x", end="<|im_end|>", system="stays")),
        (templates.DATED, table.Row("x", end="<|im_end|>", system="none", dated=True)),
    ],
)
def test_what_a_template_does_is_read_out_of_it(template: str, expected: table.Row) -> None:
    assert table.read("x", template) == expected


def test_a_template_that_needs_more_is_refused() -> None:
    assert "'NoneType' object is not iterable" in table.read("x", templates.NEEDS_TOOLS).refused


def test_the_page_is_what_the_published_templates_give() -> None:
    if not table.archive_path().is_file():
        pytest.skip(f"{table.archive_path()} is not there: python -m benchmarks.templates fetches it")
    import transformers

    shown = table.PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " not in shown.replace("\n", " "):
        pytest.skip("the page was made with another version of transformers")
    assert shown == table.page()
