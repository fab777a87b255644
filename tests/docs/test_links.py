"""Whatever a Markdown file points to is there: files, headings, modules, targets of make."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.docs.pages import Page, names, pages

TOP = (
    "app",
    "benchmarks",
    "callbacks",
    "configs",
    "datamodules",
    "docs",
    "findings",
    "modules",
    "requirements",
    "tests",
)
PATH = re.compile(rf"(?:{'|'.join(TOP)})/[\w./*-]*")


@pytest.mark.parametrize("page", pages(), ids=names)
def test_links_lead_somewhere(page: Page) -> None:
    for target in page.links:
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.path.parent / file).resolve() if file else page.path
        assert found.exists(), f"{target}: no such file"
        assert found.is_relative_to(ROOT)
        if anchor:
            assert anchor in Page(found).anchors, f"{target}: no such heading"


@pytest.mark.parametrize("page", pages(), ids=names)
def test_paths_in_the_text_are_there(page: Page) -> None:
    for span in page.spans:
        if PATH.fullmatch(span):
            assert list(ROOT.glob(span.rstrip("/"))), f"`{span}`: no such file"


@pytest.mark.parametrize("page", pages(), ids=names)
def test_programs_and_targets_of_make_are_there(page: Page) -> None:
    code = "\n".join([*page.spans, *(content for _, content in page.blocks)])
    for module in re.findall(r"python -m ([\w.]+)(?![\w.<])", code):
        if module.split(".")[0] in TOP:
            assert importlib.util.find_spec(module) is not None, module
    targets = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", code, flags=re.MULTILINE):
        assert target in targets, f"make {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    waiting, reached = [ROOT / "README.md"], set()
    for path in waiting:  # which grows on the way
        if path not in reached:
            reached.add(path)
            files = [target.partition("#")[0] for target in Page(path).links if "://" not in target]
            waiting += [(path.parent / file).resolve() for file in files if file.endswith(".md")]
    assert {page.path for page in pages() if page.path.is_relative_to(ROOT / "docs")} <= reached


def test_the_readme_is_one_that_is_read() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180
