"""Commands, keys and configurations in Markdown files are those of the code."""

import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from app.cli.errors import Source, check_keys, read_sources
from app.cli.reference import PARTS, Key, classes_in, keys_of
from app.cli.runner import GRPOLambdaCLI, _top_level
from tests.command_line import ROOT
from tests.docs.pages import Page, names, pages

VERL = ("verl", "default", "here", "default", "what differs")
KEY = re.compile(rf"(?:{'|'.join(PARTS)})(?:\.\w+)+")


def commands(page: Page) -> Iterator[tuple[str, list[str]]]:
    """(subcommand, arguments) of the calls of main.py, without placeholders such as ``…``."""
    texts = [content for language, content in page.blocks if language in ("", "sh", "bash")]
    for text in [*texts, *page.spans]:
        for line in text.replace("\\\n", " ").splitlines():
            found = re.search(r"main\.py (fit|validate)\b(.*)", line.split("  #")[0])
            if found:
                words = shlex.split(re.sub(r"(--[\w.]+ )?…", "", found[2]), comments=True)
                yield found[1], words


def key_at(dotted: str) -> Key | None:
    """The key that a dotted name leads to, whichever classes are chosen on the way; None where there is none."""
    part, *rest = [name for name in dotted.split(".") if name != "init_args"]
    if part == "trainer":
        return Key(rest[0], Any, None, "") if rest[0] in inspect.signature(Trainer).parameters else None
    annotation, key = PARTS[part][1], None
    while rest:
        key = _find(annotation, rest.pop(0))
        if key is None:
            return None
        annotation = key.annotation
        origins = {typing.get_origin(each) for each in (annotation, *typing.get_args(annotation))}
        if origins & {dict, list}:
            rest = rest[1:]  # a name of the user's own, such as a benchmark's, or a number
    return key


def _find(annotation: Any, name: str) -> Key | None:
    return next((key for cls in classes_in(annotation) for key in keys_of(cls) if key.name == name), None)


def refuse_unknown(subcommand: str, sources: list[Source]) -> None:
    GRPOLambdaCLI.wanted = subcommand
    check_keys(sources, _top_level(subcommand))


@pytest.mark.parametrize("page", pages(), ids=names)
def test_commands_name_files_and_keys_that_are_there(page: Page) -> None:
    for subcommand, words in commands(page):
        kept: list[str] = []
        options = iter(words)
        for word in options:
            value = (
                [] if word in ("--dry_run", "--print_config", "--help") or word.endswith(".help") else [next(options)]
            )
            if word == "--config" and not value[0].startswith("configs/"):
                continue  # a file of the reader's
            if word != "--ckpt_path":
                kept += [word, *value]
        refuse_unknown(subcommand, read_sources(kept))


@pytest.mark.parametrize("page", pages(), ids=names)
def test_configurations_hold_keys_that_are_there(page: Page) -> None:
    for language, content in page.blocks:
        if language == "yaml":
            refuse_unknown("fit", [Source(names(page), yaml.safe_load(content))])


@pytest.mark.parametrize("page", pages(), ids=names)
def test_dotted_names_are_keys(page: Page) -> None:
    foreign = {span for row in page.rows(*VERL) for span in row[0].replace("`", "").split(", ")}
    for span in page.spans:
        dotted = span.removeprefix("--").split(" ")[0].partition(":")[0]
        if KEY.fullmatch(dotted) and span not in foreign and not dotted.endswith((".py", ".html", ".jsonl")):
            assert key_at(dotted) is not None, f"`{span}`: no such key"


def test_a_key_that_is_not_there_is_found() -> None:
    assert key_at("rollouts.engine.init_args.placement") is not None
    assert key_at("data.benchmarks.aime24.source.folder") is not None
    for dotted in ("rollouts.group_sise", "model.objective.lamda", "rollouts.engine.place", "trainer.device"):
        assert key_at(dotted) is None
    assert ROOT.joinpath("README.md") in [page.path for page in pages()]
