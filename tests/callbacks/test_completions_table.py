"""The table of completions as TensorBoard's own renderer shows it, whatever a model writes."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html

from app.data.problems import Problem
from callbacks.completions_table import CompletionsTable
from callbacks.markdown import literal, table
from tests.running import fake_rollout

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
MARKUP = [
    *"![](){}<>|`*_~#+-=:.\\&;/\"' \t",
    *LINE_ENDS,
    "http://x.y",
    "&lt;",
    "&#124;",
    "a",
    "7",
    "é",
    "😀",
    "```",
    "| - |",
]


class Cells(HTMLParser):
    """The cells of the tables in a page, and all tags and attributes that occur in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip("\n"):
            self.rows[-1][-1] += data


def shown(text: str) -> str:
    """What a reader sees of the completion ``text``: cells are trimmed, and browsers run spaces together."""
    rollout = fake_rollout([[0.0, 1.0]], "x")
    rollout.texts[0] = text
    rollout.batch.problems[0] = Problem("p", "question", "1")
    page = Cells(markdown_to_safe_html(table(*CompletionsTable(prompts=1).cells(rollout))))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert not page.attributes
    assert [len(row) for row in page.rows] == [7, 7, 7]
    assert [row[0] for row in page.rows] == ["problem", "question", "question"]
    return page.rows[1][2]


@pytest.mark.parametrize(
    "text",
    [
        "![](http://elsewhere/pixel.png)",
        "[the answer](http://elsewhere)",
        "[x][1]",
        "<http://elsewhere> <img src=x> &lt;b&gt;",
        "a|b | c",
        "*x* _y_ `z` **w** ~~v~~ \\boxed{1} \\| \\\\",
        "# 1. - + > :---:",
    ],
)
def test_markup_is_shown_and_not_obeyed(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize("end", ["\r\n", *LINE_ENDS])
def test_every_kind_of_line_end_stays_in_its_cell(end: str) -> None:
    assert shown(f"one{end}two") == "one\ntwo"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_keeps_to_its_cell(text: str) -> None:
    shown(text)


def test_what_cannot_be_shown_or_stored_is_replaced() -> None:
    assert literal("a\x00b\x02c\ud800d") == "a\ufffdb\ufffdc\ufffdd"


def test_long_texts_are_cut_in_the_middle_before_they_are_escaped() -> None:
    assert (
        literal(CompletionsTable(max_characters=40)._cut("|" * 20 + "x" * 9 + "y" * 20))
        == "&#124;" * 20 + " … " + "y" * 20
    )
