"""The dry run as a command: what it prints, what it refuses, what it warns of."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from app.cli.main import main
from app.policy.exporting import save_policy
from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer
from tests.dry_run.published import PUBLISHED
from tests.models import tiny_config

RL = """
model:
  class_path: GRPOLambdaModule
  init_args: {policy: {path: FOLDER}, micro_batch_size: 3}
data:
  class_path: MathPromptDataModule
  init_args:
    train: {class_path: JsonLinesSource, init_args: {path: PROBLEMS}}
    benchmarks:
      small: {source: {class_path: JsonLinesSource, init_args: {path: BENCHMARK}}}
    prompts_per_iteration: 4
    iterations: 3
rollouts: {group_size: 2, sampling: {max_new_tokens: 8}}
evaluation: {sampling: {temperature: 0, max_new_tokens: 8}}
export: {}
trainer: {accelerator: cpu, default_root_dir: ROOT}
"""
LONG = "A farmer has twenty red hens and five white ducks in each of his three long green barns"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's folder whose weights are rubbish, problems, and a configuration."""
    root = tmp_path_factory.mktemp("dry_run")
    settings = PolicySettings(config=tiny_config(), tokenizer=NewTokenizerSettings())
    tokenizer = load_tokenizer(settings)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny_config()))
    save_policy(model, tokenizer, root / "policy")
    (root / "policy" / "model.safetensors").write_bytes(b"not weights at all")
    rows = [{"problem": f"Tom has {n} apples . finds 3 . how many ?", "answer": str(n + 3)} for n in range(10)]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"problem": LONG, "answer": "75"}])))
    (root / "benchmark.jsonl").write_text(json.dumps({"problem": "Sue has 1 pear . how many ?", "answer": "1"}))
    (root / "copied.jsonl").write_text(json.dumps({"problem": LONG, "answer": "75"}))
    names = {"FOLDER": "policy", "PROBLEMS": "train.jsonl", "BENCHMARK": "benchmark.jsonl", "ROOT": "runs"}
    text = RL
    for name, value in names.items():
        text = text.replace(name, value)
    (root / "rl.yaml").write_text(text)
    return root


def dry_run(
    workspace: Path, capsys: pytest.CaptureFixture, *options: str, command: str = "fit"
) -> tuple[int, str, str]:
    """(exit code, print-out, what stands on stderr)."""
    with inside(workspace):
        code = main([command, "--config", "rl.yaml", "--dry_run", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def numbers_after(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def test_it_prints_batches_paths_and_parameters_and_reads_no_weights(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = dry_run(workspace, capsys, "--model.updates.mini_batches", "2", "--model.updates.per_rollout", "3")
    assert code == 0
    assert numbers_after(out, "prompts") == ["4", "4"]
    assert numbers_after(out, "completions") == ["8", "8"]
    assert numbers_after(out, "completion tokens at most") == ["64", "64"]
    assert numbers_after(out, "optimiser steps") == ["6", "6"]
    assert numbers_after(out, "completions a step") == ["4", "4"]
    assert numbers_after(out, "micro-batches a step") == ["2", "2"]
    assert numbers_after(out, "forward and backward passes") == ["12", "12"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny_config()))
    assert numbers_after(out, "parameters")[0] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert "train.jsonl: train: 11 of 11 rows kept" in out
    assert "a prompt\n  text          '<user>" in out
    assert "<assistant>'\n" in out
    assert "begin outside thoughts, end with '<eos>'" in out
    assert "1.09 times the training set" in out
    assert out.rstrip().endswith("- none")
    assert not (workspace / "runs").exists()


def test_micro_batches_by_tokens_are_counted_at_the_longest_rows(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    """By the prompt's limit of 40 and completions of 8 tokens: 100 tokens hold two rows."""
    options = ["--data.prompt.max_prompt_tokens", "40", "--model.micro_batch_tokens", "100"]
    code, out, _ = dry_run(workspace, capsys, *options)
    assert code == 0
    assert numbers_after(out, "micro-batches a step") == ["4", "4"]
    assert " 2 × 8 × 32 × 8 B" in next(line for line in out.splitlines() if line.strip().startswith("log-probs"))


def test_ranks_divide_the_batch(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, _ = dry_run(workspace, capsys, "--trainer.devices", "2", "--trainer.num_nodes", "2")
    assert code == 0
    assert numbers_after(out, "prompts") == ["1", "4"]
    assert numbers_after(out, "completions") == ["2", "8"]
    assert "gradient buckets" in out


def test_the_supervised_stage(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    overlay = workspace / "sft.yaml"
    data = "{class_path: SFTDataModule, init_args: {batch_size: 8, completion_template: '{answer}'}}"
    overlay.write_text(f"model: {{class_path: SFTModule}}\ndata: {data}\nrollouts: null\n")
    code, out, err = dry_run(workspace, capsys, "--config", str(overlay))
    assert code == 0, err
    assert numbers_after(out, "examples") == ["8", "8"]
    assert numbers_after(out, "micro-batches a step") == ["3", "3"]
    assert "KV cache" not in out
    code, _, err = dry_run(workspace, capsys, "--config", str(overlay), "--data.completion_template", "{solution}")
    assert code == 2
    assert "has no text in its column 'solution'" in err


REFUSED = {
    ("--trainer.devices", "3"): "data.prompts_per_iteration: 4 does not divide by the 3 ranks (in rl.yaml)",
    (
        "--trainer.devices",
        "4",
        "--model.updates.mini_batches",
        "2",
    ): "model.updates.mini_batches: 2 does not divide the 1 prompts",
    ("--data.prompt.max_prompt_tokens", "600"): "leave no room in the model's context of 512",
    ("--checkpoint.monitor", "eval/smal/accuracy"): "there is no benchmark 'smal' in data.benchmarks; there are small",
    ("--model.policy.dtype", "bfloat16", "--trainer.precision", "bf16-true"): "trains float32 master weights",
    ("--model.policy.path", "./polcy"): "model.policy.path: no such folder: ./polcy; did you mean policy?",
    ("--trainer.precision", "16-mixed"): "trainer.precision: must be one of",
    ("--data.train", "null"): "data.train: fit needs a training set",
}


@pytest.mark.parametrize("options", list(REFUSED))
def test_what_cannot_work_is_refused_in_one_line(
    workspace: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...]
) -> None:
    code, out, err = dry_run(workspace, capsys, *options)
    assert (code, out) == (2, "")
    assert REFUSED[options] in err
    assert err.strip().splitlines()[-1].startswith("error: ")


WARNED = {
    ("--rollouts.sampling.top_p", "0.9"): "rollouts.sampling: top_p",
    ("--rollouts.sampling.max_new_tokens", "509"): "context is 512",
    ("--evaluation.sampling.max_new_tokens", "7"): "answers that training rewards are cut off",
    ("--export", "null"): "nothing of the trained policy is kept",
    ("--evaluation", "null"): "the benchmarks are not run",
    ("--data.benchmarks", "null"): "data.benchmarks: there are none",
    ("--trainer.val_check_interval", "4"): "more than the run's 3 iterations",
    ("--data.benchmarks.small.source.path", "copied.jsonl"): "the training set holds 1 problems of small",
    ("--model.policy.dtype", "bfloat16"): "are lost",
}


@pytest.mark.parametrize("options", list(WARNED))
def test_what_is_probably_not_meant_is_warned_of(
    workspace: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...]
) -> None:
    code, out, err = dry_run(workspace, capsys, *options)
    assert code == 0, err
    warnings = out[out.index("\nwarnings\n") :]
    assert WARNED[options] in warnings


def test_a_correction_and_drop_silence_their_warnings(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, err = dry_run(
        workspace,
        capsys,
        *("--rollouts.sampling.top_p", "0.9", "--rollouts.mismatch.correction.mode", "truncated"),
        *("--data.benchmarks.small.source.path", "copied.jsonl", "--data.overlap", "drop"),
    )
    assert code == 0, err
    assert out.rstrip().endswith("- none")


def test_large_models_are_warned_of_learning_rate_and_memory(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    policy = {"path": None, "config": PUBLISHED["qwen2.5-7b"][1], "tokenizer": {"kind": "synthetic"}}
    large = workspace / "large.yaml"
    large.write_text(json.dumps({"model": {"init_args": {"policy": policy}}}))
    code, out, err = dry_run(workspace, capsys, "--config", str(large), "--model.optimizer.lr", "1e-3")
    assert code == 0, err
    assert "model.optimizer.lr: 0.001 is outside the usual 1e-08 … 2e-05" in out
    assert "over 80 GiB a rank" in out
    code, out, err = dry_run(
        workspace, capsys, "--config", str(large), "--model.policy.lora.r", "8", "--model.optimizer.lr", "1e-4"
    )
    assert code == 0, err
    assert "outside the usual" not in out
