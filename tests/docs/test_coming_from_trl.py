"""``docs/coming_from_trl.md``: TRL's names and defaults are those that are installed, ours those of the code."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from tests.command_line import ROOT
from tests.docs.pages import Page
from tests.docs.test_commands import key_at

PAGE = Page(ROOT / "docs" / "coming_from_trl.md")
FILES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
)


def trl_defaults() -> dict[str, Any]:
    """Field → default of GRPOConfig, read from the sources: importing TRL takes seconds."""
    found: dict[str, Any] = {}
    for package, file, name in FILES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse((Path(spec.origin).parent / file).read_text())
        (defined,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        for line in defined.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                found[line.target.id] = default_of(line.value)
    return found


def default_of(value: ast.expr) -> Any:
    if isinstance(value, ast.Call):
        value = next((each.value for each in value.keywords if each.arg == "default"), value)
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ...  # an expression, such as a choice by version


def same(written: Any, default: Any) -> bool:
    """YAML reads 1e-6 as a text."""
    try:
        return float(written) == float(default)
    except (TypeError, ValueError):
        return written == (list(default) if isinstance(default, tuple) else default)


def test_names_and_defaults_of_trl() -> None:
    fields, rows = trl_defaults(), PAGE.rows("TRL", "default", "here", "default", "what differs")
    assert len(rows) > 50
    for row in rows:
        name = row[0].strip("`")
        assert name in fields, name
        assert fields[name] is ... or row[1] == str(fields[name]) or same(row[1], fields[name]), (name, fields[name])


def test_our_names_and_defaults() -> None:
    for head in ("TRL", "verl"):
        for row in PAGE.rows(head, "default", "here", "default", "what differs"):
            keys = re.findall(r"`([\w.]+)`", row[2])
            assert keys or row[2:4] == ["–", "–"], row
            if keys and "." in keys[0] and not keys[0].startswith("trainer."):
                key, written = key_at(keys[0]), yaml.safe_load(f"[{row[3]}]")
                assert key is not None, keys[0]
                assert same(written[0], key.default), (keys[0], key.default)


def test_the_script_and_the_file_say_the_same() -> None:
    """One optimiser step and one prompt more or less would be another run."""
    (script,) = [content for language, content in PAGE.blocks if language == "python"]
    (file,) = [content for language, content in PAGE.blocks if language == "yaml"]
    call = next(
        node for node in ast.walk(ast.parse(script)) if getattr(getattr(node, "func", None), "id", "") == "GRPOConfig"
    )
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    assert given.keys() <= trl_defaults().keys()
    config = yaml.safe_load(file)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    steps = given["steps_per_generation"] // given["gradient_accumulation_steps"]
    completions = given["per_device_train_batch_size"] * given["steps_per_generation"]
    assert model["updates"]["mini_batches"] == steps
    assert data["prompts_per_iteration"] * config["rollouts"]["group_size"] == completions
    assert data["iterations"] * steps == given["max_steps"]
    assert model["optimizer"]["warmup_iterations"] * steps == given["warmup_steps"]
    assert model["micro_batch_size"] == given["per_device_train_batch_size"]
    assert (model["objective"]["beta"], model["optimizer"]["lr"]) == (given["beta"], given["learning_rate"])
