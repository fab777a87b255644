"""The page of an evaluation's samples, by a real policy and tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from app.credit.journal import read_lines
from app.credit.samples import contested, main
from app.data.prompts import PromptSettings
from app.evaluation.samples import Sample, SampleLog, merge_samples
from app.policy.exporting import save_policy
from app.policy.models import load_policy, load_tokenizer
from tests.running import policy_settings

VERDICTS = {"p1": [True, False, False], "p2": [True, True, True], "p3": [False, True, False]}
PROBLEM = "Tom has 25 apples . finds 3 . how many ?"


def sample(name: str, index: int, correct: bool) -> Sample:
    text = f"25+3={index};\\boxed{{2{index}}}"
    counted = 12 if index else 99
    judged: dict[str, Any] = {"extracted": None, "correct": correct, "reason": "x", "cluster": None}
    return Sample(
        "sums", name, PROBLEM, "28", index, text, n_tokens=counted, finish_reason="stop", seed=0, grader="g", **judged
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation whose policy lies beside it."""
    found = tmp_path_factory.mktemp("evaluation")
    settings = policy_settings()
    save_policy(load_policy(settings, 1), load_tokenizer(settings), found / "policy")
    with SampleLog(found, "sums", "hash", 3) as log:
        for name, verdicts in VERDICTS.items():
            log.append([sample(name, index, correct) for index, correct in enumerate(verdicts)])
    merge_samples(found, "sums", "hash", 3, list(VERDICTS))
    asked = {
        "policy": {"path": str(found / "policy"), "tokenizer": None},
        "ckpt_path": None,
        "prompts": {"sums": asdict(PromptSettings())},
    }
    (found / "results.json").write_text(json.dumps({"benchmarks": {}, "settings": asked}))
    return found


def test_contested_problems_get_the_credit_of_their_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--benchmark", "sums", "--lam", "0.5"]) == 0
    out, err = capsys.readouterr()
    page = folder / "credit-sums.html"
    assert out.strip() == str(page)
    assert page.read_text(encoding="utf-8").count('"label":"sums, problem p') == 2
    assert "1 of 3 completions of problem p1 are cut into other tokens" in err
    first, third = (record for _, record in read_lines(folder / "credit-sums.jsonl"))
    assert [each["reward"] for each in first["completions"]] == [1, 0, 0]
    assert [each["index"] for each in third["completions"]] == [1, 0, 2]
    best = first["completions"][0]
    assert "".join(best["texts"]) == "25+3=0;\\boxed{20}<eos>"
    advantage = (1 - 1 / 3) / (torch.tensor([1.0, 0, 0]).std().item() + 1e-4)
    assert best["variants"]["grpo"]["credit"] == pytest.approx([advantage] * best["length"], rel=6e-3)
    assert best["variants"]["terminal"]["credit"][-2:] == pytest.approx([advantage / 2, advantage], rel=6e-3)
    assert best["log_ratio"] is None  # all 0


def test_log_probabilities_are_those_of_the_policy_after_the_prompt(folder: Path) -> None:
    assert main([str(folder), "--benchmark", "sums", "--problems", "1"]) == 0
    ((_, record),) = read_lines(folder / "credit-sums.jsonl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = AutoModelForCausalLM.from_pretrained(folder / "policy").eval()
    last = max(record["completions"], key=lambda each: each["index"])
    prompt = tokenizer(PROBLEM)["input_ids"]
    if tokenizer.chat_template:
        prompt = tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": PROBLEM}], tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        )["input_ids"]
    answer = [*tokenizer("25+3=2;\\boxed{22}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(answer)[:, None]).squeeze(1)
    assert last["old_log_prob"] == pytest.approx(expected.tolist(), rel=6e-3)
    entropy = -(logits.exp() * logits).sum(-1)
    assert last["entropy"] == pytest.approx(entropy.tolist(), rel=6e-3)


def test_what_cannot_be_shown_is_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contested([sample("p", 0, True), sample("p", 1, True)]) == []
    cases = {
        ("--benchmark", "other"): "other.jsonl does not exist",
        ("--benchmark", "sums", "--problems", "0"): "problems: must be at least 1, got 0",
        ("--benchmark", "sums", "--lam", "2"): "objective.lam: must lie in [0, 1]",
        ("--benchmark", "sums", "--policy", str(folder / "nowhere")): "nowhere",
    }
    for options, said in cases.items():
        assert main([str(folder), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
