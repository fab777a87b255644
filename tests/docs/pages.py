"""The Markdown files of the project, taken apart: prose, code in the text, blocks of code, tables."""

import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.command_line import ROOT

FENCED = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<content>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}(?! *[-*\d]).*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """One file."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        """(language, content) of the fenced blocks; "" for the language of indented and unnamed ones."""
        fenced = [(match["language"], textwrap.dedent(match["content"])) for match in FENCED.finditer(self.text)]
        return [*fenced, *(("", block) for block in INDENTED.findall(FENCED.sub("", self.text)))]

    @cached_property
    def prose(self) -> str:
        """All but the blocks of code."""
        return INDENTED.sub("\n", FENCED.sub("", self.text))

    @cached_property
    def spans(self) -> list[str]:
        """Code in the text, ``such as this``."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", self.prose))

    @cached_property
    def anchors(self) -> set[str]:
        """As GitHub makes them of the headings."""
        found: set[str] = set()
        for title in re.findall(r"^#+ (.*)$", self.prose, flags=re.MULTILINE):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.add(next(each for n in range(99) if (each := f"{slug}-{n}" if n else slug) not in found))
        return found

    def rows(self, *head: str) -> list[list[str]]:
        """The rows of all tables with these columns."""
        start = "| " + " | ".join(head) + " |"
        tables = [part.split("\n\n")[0].splitlines()[2:] for part in self.text.split(start)[1:]]
        return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table]


def pages() -> list[Page]:
    """Those of the project itself."""
    kept = ("docs", "findings", "benchmarks", "configs", "tests")
    return [
        Page(path) for path in sorted([*ROOT.glob("*.md"), *(p for each in kept for p in ROOT.glob(f"{each}/**/*.md"))])
    ]


def names(page: Page) -> str:
    """For the test's name."""
    return str(page.path.relative_to(ROOT))
