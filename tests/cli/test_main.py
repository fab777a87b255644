"""The command line as a user meets it."""

import dataclasses
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import runner
from app.cli.errors import Source, check_keys, read_sources
from app.cli.main import main
from app.errors import ConfigurationError
from datamodules import MathPromptDataModule
from modules import GRPOLambdaModule
from tests.cli.small_run import small_run

ROOT = Path(__file__).parents[2]
QUICKSTART = ["--config", str(ROOT / "configs/quickstart/grpo_lambda.yaml")]


@pytest.fixture(autouse=True)
def _policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that the quickstart's configuration names exist; no weight of theirs can be loaded."""
    folder = tmp_path / "runs/quickstart/warm-start/hf"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--rollouts.group_sise 3", "rollouts.group_sise: no such key; did you mean group_size? (in command line)"),
        (
            "--rollouts.group_size 1",
            "rollouts.group_size: must be at least 2 (an advantage is relative to a group), got 1",
        ),
        ("--rollouts.group_size x", "rollouts.group_size: Expected int. Got value: x (in command line)"),
        ("--model.objective.lam 1.5", "model.objective.lam: must lie in [0, 1], got 1.5 (in command line)"),
        ("--model.objective.style recentt", "model.objective.style: unknown name 'recentt'; did you mean 'recent'?"),
        ("--model.class_path GRPOLamdaModule", "no class GRPOLamdaModule; did you mean GRPOLambdaModule?"),
        ("--model.policy.path runs/quickstart/warm-strat/hf", "model.policy.path: no such folder"),
        (
            "--model.updates.mini_batches 3",
            "model.updates.mini_batches: 3 does not divide the 16 prompts of an iteration",
        ),
        ("--rollouts.group_size null", "rollouts.group_size: needs a value, and null is none"),
        ("--model.optimizer.lr null", "model.optimizer.lr: needs a value, and null is none"),
        ("--trainer null", "trainer: needs a value, and null is none"),
        ("--rollouts null", "rollouts: GRPOLambdaModule learns from rollouts"),
        ("--trainer.max_epocs 3", "trainer.max_epocs: no such key; did you mean max_epochs?"),
        ("--model.objective.lam=${nope}", "model.objective.lam: Interpolation key '"),  # omegaconf 2.4 adds a path
        ("--config missing.yaml", "there is no file missing.yaml"),
        ("--rollouts.truncation.mode drop", "rollouts.truncation.mode: unknown name 'drop'"),
        ("--rollouts.engine.class_path app.Nope", "rollouts.engine.class_path: no class app.Nope"),
        ("--model.objective.reduction constant", "model.objective.max_tokens: reduction 'constant' needs it"),
        ("--data.class_path SFTDataModule", "data"),
        (f"--config {ROOT}/configs/strategy/fsdp.yaml --trainer.accelerator cpu", "trainer: The strategy `fsdp`"),
    ],
)
def test_wrong_input_gives_one_line_and_exit_code_2(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICKSTART, *arguments.split()]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]


def test_a_switch_that_ends_the_command_is_on_and_a_misspelt_one_is_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_sources(["--name", "mine", "--dry_run"])[-1].values == {"name": "mine", "dry_run": True}
    assert main(["fit", "--dry_rn"]) == 2
    assert "error: dry_rn: no such key; did you mean dry_run?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--config", "configs/recipes/base_rl.yaml", "--print_config"]]
)
def test_a_reader_that_has_read_enough_ends_the_command_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "main.py", *arguments]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd=ROOT
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_prompt_longer_than_the_context_is_named_by_its_row_before_the_first_iteration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": "1 + 1 = ?", "answer": "2"}] * 40 + [{"problem": "1 + " * 200, "answer": "200"}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = small_run(tmp_path, {"class_path": "TransformersEngine"})
    source = {"class_path": "JsonLinesSource", "init_args": {"path": str(tmp_path / "rows.jsonl")}}
    assert main([*arguments, "--data.train", json.dumps(source), "--data.iterations", "10"]) == 2
    shown = capsys.readouterr().err
    assert "data.prompt.max_prompt_tokens: the prompt of " in shown
    assert "rows.jsonl: row 41 has " in shown
    assert "context of 256" in shown
    assert "iteration 1" not in shown


def test_the_preflights_advice_on_truncation_is_one_that_a_run_can_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = small_run(tmp_path, {"class_path": "TransformersEngine"})
    arguments += ["--rollouts.sampling.top_k", "2", "--rollouts.sampling.max_new_tokens", "8", "--data.iterations", "1"]
    assert main(arguments) == 1
    advice = re.search(r"rollouts\.mismatch\.correction: \{\}", capsys.readouterr().err)
    assert advice is not None
    assert main([*arguments, *f"--{advice[0]}".split(": ")]) == 0


def test_an_unknown_command_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "error: no command train; there are fit, validate\n"


def test_the_file_that_sets_a_wrong_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("model: {init_args: {objective: {lam: 2.0}}}\n")
    assert main(["fit", *QUICKSTART, "--config", "mine.yaml"]) == 2
    assert "error: model.objective.lam: must lie in [0, 1], got 2.0 (in mine.yaml)" in capsys.readouterr().err


def test_stacked_files_overrides_and_interpolation_make_one_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    reference = "{max_new_tokens: '${data.init_args.iterations}'}"
    Path("mine.yaml").write_text(f"rollouts: {{init_args: {{group_size: 4, sampling: {reference}}}}}\n")
    with pytest.raises(SystemExit) as ended:
        main(["fit", *QUICKSTART, "--config", "mine.yaml", "--data.iterations", "33", "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    rollouts = config["rollouts"]["init_args"]
    assert rollouts["group_size"] == 4
    assert rollouts["sampling"]["max_new_tokens"] == 33
    assert rollouts["sampling"]["temperature"] == 1.0
    assert config["data"]["init_args"]["iterations"] == 33
    assert config["model"]["init_args"]["objective"]["lam"] == 0.98


def test_a_benchmark_that_the_data_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("evaluation: {benchmarks: {heldot: {samples: 2, temperature: 1.0}}}\n")
    assert main(["fit", *QUICKSTART, "--config", "mine.yaml"]) == 2
    expected = "error: evaluation.benchmarks.heldot: no such benchmark in data.benchmarks; did you mean heldout?"
    assert expected in capsys.readouterr().err


def test_help_is_there_without_loading_anything() -> None:
    script = "import sys; from app.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python main.py {fit,validate}")
    assert done.stdout.endswith("False\n")


def test_a_wrong_key_is_named_before_transformers_is_imported() -> None:
    script = (
        "import sys; from app.cli.main import main; code = main(['fit', '--nam', 'x']); "
        "print(code, [name for name in ('transformers', 'vllm', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert "error: nam: no such key; did you mean name?" in done.stderr


def test_the_process_ends_with_code_2_and_one_line() -> None:
    command = [sys.executable, "main.py", "fit", "--config", "configs/quickstart/grpo_lambda.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --config: there is no file configs/quickstart/grpo_lambda.yml; "
        "did you mean configs/quickstart/grpo_lambda.yaml?\n"
    )


def test_null_is_refused_for_every_key_that_needs_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enumerated from the constructors' own annotations, a file for each; the parser would let all of them pass."""
    monkeypatch.setattr(runner.GRPOLambdaCLI, "wanted", "fit")
    top_level = runner._top_level("fit") | {"model": GRPOLambdaModule, "data": MathPromptDataModule}
    needed = list(keys_that_need_a_value(top_level))
    for path in needed:
        values: Any = functools.reduce(lambda inner, key: {key: inner}, reversed(path), None)
        with pytest.raises(ConfigurationError) as caught:
            check_keys([Source("mine.yaml", values)], top_level)
        assert str(caught.value).startswith(f"{'.'.join(path)}: needs a value"), path
        assert str(caught.value).endswith("(in mine.yaml)")
    for expected in ("rollouts.group_size", "model.optimizer.lr", "data.iterations", "rollouts.sampling"):
        assert expected.split(".") in needed
    assert len(needed) > 80


def keys_that_need_a_value(of: Mapping[str, Any], depth: int = 0) -> Iterator[list[str]]:
    """Keys whose annotation leaves null out, and those of the settings and parts below them."""
    for key, annotation in of.items():
        options = typing.get_args(annotation) or (annotation,)
        if not {type(None), Any, inspect.Parameter.empty} & set(options) and not isinstance(annotation, str):
            yield [key]
        for part in options:
            if dataclasses.is_dataclass(part) or (
                depth == 0 and inspect.isclass(part) and part.__module__ != "builtins"
            ):
                inner = inspect.signature(part).parameters  # type: ignore[arg-type]
                hints = typing.get_type_hints(part.__init__)
                below = {name: hints[name] for name in inner if name in hints}
                yield from ([key, *path] for path in keys_that_need_a_value(below, depth + 1))
