"""``docs/configuration.md``: it says what the code does, and leaves nothing out."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.errors import _plain
from app.cli.reference import COST, COSTLY, classes_in, keys_of, reference
from app.cli.runner import CALLBACKS
from datamodules.base import ProblemDataModule
from modules.policy_module import PolicyModule

PAGE = Path("docs/configuration.md")
PARTS: dict[str, Any] = {"model": PolicyModule, "data": ProblemDataModule, **CALLBACKS}
# a plan of a report is no configuration of a run
CONFIGURATIONS = sorted(path for path in Path("configs").rglob("*.yaml") if "plans" not in path.parts)


def test_the_page_is_that_of_this_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m app.cli.reference > docs/configuration.md"


def described(annotation: Any, seen: set[type]) -> set[type]:
    """All classes at or below ``annotation``."""
    for cls in classes_in(annotation):
        if cls not in seen:
            seen.add(cls)
            for key in keys_of(cls):
                described(key.annotation, seen)
    return seen


def test_every_key_has_a_meaning_and_a_line_in_its_classs_table() -> None:
    sections = re.split(r"^### (\w+) at .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tables: dict[str, list[set[str]]] = {}
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        own = text.partition("\n## ")[0]
        tables.setdefault(name, []).append(set(re.findall(r"^\| `(\w+)` \|", own, flags=re.MULTILINE)))
    classes: set[type] = set()
    for base in PARTS.values():
        described(base, classes)
    assert len(classes) > 25
    for cls in classes:
        keys = keys_of(cls)
        assert all(key.meaning.strip() for key in keys), f"{cls.__name__}: a key without a meaning in its docstring"
        assert {key.name for key in keys} in tables[cls.__name__]


def test_costly_keys_point_to_their_cost_and_all_that_have_one_do() -> None:
    table = Path("docs/costs.md").read_text(encoding="utf-8").partition("| switch |")[2]
    explained = {
        key for line in table.splitlines() for key in re.findall(r"`([a-z_.]+\.[a-z_]+)\b", line.split(" | ")[0])
    }
    assert explained == {f"{place}.{name}" for place, names in COSTLY.items() for name in names}
    page = PAGE.read_text(encoding="utf-8")
    for name in (name for names in COSTLY.values() for name in names):
        assert re.search(rf"^\| `{name}` \|.*{re.escape(COST)}", page, flags=re.MULTILINE), name


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=str)
def test_every_key_of_the_configurations_stands_on_the_page(path: Path) -> None:
    """Read by the files' own words, not by the walk over signatures that the page is written with."""
    known = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    free = ("config", "benchmarks", "columns", "strategy")  # their values have keys of their own

    def check(values: Any) -> None:
        for key, value in _plain(values).items():
            assert key in known or key == "class_path", key
            if isinstance(value, dict) and key not in free:
                check(value)

    check(yaml.safe_load(path.read_text(encoding="utf-8")))
