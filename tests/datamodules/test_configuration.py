"""The data modules as a configuration file describes them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.files import PROJECT, numbered_rows, write_json_lines

CONFIGURATION = """
data:
  train:
    class_path: JsonLinesSource
    init_args:
      path: PATH
      columns: {solution: answer}
      filters: {max_characters: 300}
  benchmarks:
    heldout:
      source: {class_path: SyntheticSource, init_args: {split: heldout, size: 20}}
      limit: 7
      prompt: {style: boxed}
  prompt: {style: r1, max_prompt_tokens: 99, overlong: truncate}
  iterations: 5
"""


def parse(text: str, name: str) -> Any:
    from jsonargparse import ArgumentParser

    import datamodules

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(datamodules, name), "data")
    return parser.instantiate(parser.parse_object(yaml.safe_load(text))).data


@pytest.mark.parametrize("name", ["MathPromptDataModule", "SFTDataModule"])
def test_a_configuration_becomes_a_data_module(tmp_path: Path, name: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", numbered_rows(3))
    data = parse(CONFIGURATION.replace("PATH", path), name)
    assert len(data.train.problems()) == 3
    assert data.train.filters.max_characters == 300
    assert len(data.benchmark_problems("heldout")) == 7
    assert data.benchmarks["heldout"].prompt.style == "boxed"
    assert (data.prompt.style, data.prompt.overlong, data.iterations) == ("r1", "truncate", 5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("style: r1", "style: r2", "prompt.style: unknown style 'r2'; did you mean 'r1'"),
        ("PATH", "none.jsonl", "there is no file none.jsonl"),
        ("split: heldout", "split: helout", "helout"),
        ("iterations: 5", "iterations: 0", "data.iterations: must be at least 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", numbered_rows(3))
    text = CONFIGURATION.replace(old, new).replace("PATH", path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the parser wraps errors in several types)
        parse(text, "MathPromptDataModule")
    assert message in str(caught.value)


def test_sources_and_settings_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'lightning', 'math_verify', 'sympy', 'pandas'}"
    modules = "sys, datamodules, app.data.sources, app.data.prompts, app.data.overlap"
    code = f"import {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_data_module_is_an_attribute_error() -> None:
    import datamodules

    with pytest.raises(AttributeError, match="has no attribute 'MathPrompts'"):
        datamodules.MathPrompts  # noqa: B018
