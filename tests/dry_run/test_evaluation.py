"""``validate --dry_run`` of the benchmark configurations, on files and a policy of this machine."""

import json
from pathlib import Path

import pytest
import yaml

from app.cli.main import main
from tests.models import tiny_config

NAMES = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k_test")
ASKED = {
    "reasoning_32k": ("T 0.6, top-p 0.95", "32,768", "<|im_start|>user\\nSolve the following math problem"),
    "qwen_math": ("greedy", "2,048", "<|im_start|>system\\nPlease reason step by step"),
    "simplerl_greedy": ("greedy", "16,000", "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>"),
}
SAMPLES = {"aime24": 64, "aime25": 64, "amc23": 10, "math500": 4, "minerva": 3, "olympiadbench": 3}


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options: three problems a benchmark, and a new policy with a tokenizer that knows chats."""
    for name in NAMES:
        rows = [{"id": f"{name}-{i}", "problem": f"Problem {i} of {name}", "answer": str(i)} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = tiny_config(max_position_embeddings=40_000)
    del config["vocab_size"]
    tokenizer = {"kind": "bpe", "vocab_size": 300, "corpus": str(tmp_path / "math500.jsonl")}
    policy = {"model": {"init_args": {"policy": {"config": config, "tokenizer": tokenizer}}}}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    folder = ("--data.benchmarks.aime24.source.folder", str(tmp_path))
    return ["--config", str(tmp_path / "policy.yaml"), *folder, "--dry_run"]


@pytest.mark.parametrize("name", ASKED)
def test_a_benchmark_configuration_says_what_it_draws_and_how_it_asks(
    name: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ("--evaluation.reference", "Qwen2.5-7B")
    assert main(["validate", "--config", f"configs/benchmarks/{name}.yaml", *given, *reference]) == 0
    shown = capsys.readouterr().out
    drawn, tokens, prompt = ASKED[name]
    for benchmark, samples in SAMPLES.items():
        if name == "reasoning_32k" or benchmark != "aime25":
            samples = samples if name == "reasoning_32k" else 1
            (line,) = (each for each in shown.splitlines() if each.startswith(f"{benchmark} ") and drawn in each)
            assert line.split()[1:4] == ["3", str(samples), str(3 * samples)]
            assert tokens in line
    assert prompt in shown
    assert "Problem 0 of aime24" in shown
    assert "published scores of Qwen2.5-7B" in shown
    assert "problems 3 (500)" in shown
    assert shown.rstrip().endswith("warnings\n  - none")


def test_a_context_that_ends_completions_early_is_said(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--model.policy.config.max_position_embeddings", "1000")
    assert main(["validate", "--config", "configs/benchmarks/qwen_math.yaml", *given, *short]) == 0
    shown = capsys.readouterr().out
    assert "the model's context of 1,000 ends them" in shown
    assert "published scores" not in shown  # a new policy has none


def test_an_unknown_reference_is_refused_with_the_nearest(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--evaluation.reference", "Qwen2.5-8B")
    assert main(["validate", "--config", "configs/benchmarks/qwen_math.yaml", *given, *wrong]) == 2
    assert (
        "evaluation.reference: no published scores of 'Qwen2.5-8B' are known; did you mean" in capsys.readouterr().err
    )
