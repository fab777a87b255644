"""``main.py validate``: the benchmarks by one command, from every kind of policy, whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.main import main
from app.evaluation.results import read_results
from app.evaluation.samples import read_samples
from app.policy.exporting import save_policy
from app.policy.models import PolicySettings, load_policy, load_tokenizer
from app.policy.tokenizers import NewTokenizerSettings
from tests.command_line import ROOT, environment, run, start, succeed
from tests.data.files import REAL_FOLDER, needs_real_files, write_json_lines
from tests.models import tiny_config

MATH = ("--config", "configs/benchmarks/math.yaml")
FIVE = ("aime24", "math500", "olympiadbench", "minerva", "amc")
SIX = (*FIVE, "amc23")
FEW_TOKENS = {
    "sampling": {"temperature": 0, "max_new_tokens": 6},
    "benchmarks": {
        "aime24": {"samples": 2, "max_new_tokens": 6, "pass_k": [1, 2]},
        "amc": {"samples": 2, "max_new_tokens": 6, "pass_k": [1, 2]},
    },
}
ANSWERS = {
    "aime24": ["033", "204", "809"],
    "math500": [r"\frac{3}{4}", r"\left[0, 2\right)", "52_8", r"10,\!080", r"\text{Evelyn}"],
    "olympiadbench_math": ["2,5", r"\sqrt{3}+1", "4.5"],
    "minerva_math": ["4.5e33", r"\frac{1}{2} m v^{2}", "-1.6e-7"],
    "amc": ["27.0", "45.0"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON-lines files of the five benchmarks under ``data``, a small policy in ``policy`` and as ``policy.yaml``."""
    found = tmp_path_factory.mktemp("validate")
    (found / "data").mkdir()
    for name, answers in ANSWERS.items():
        rows = [
            {"id": f"{name}-{i}", "problem": f"Problem {i} of {name}: find $x_{i}$.", "answer": answer}
            for i, answer in enumerate(answers)
        ]
        write_json_lines(found / "data" / f"{name}.jsonl", rows)
    config = tiny_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3)
    config["max_position_embeddings"] = 16384  # real problems are long in so few subwords
    del config["vocab_size"]
    corpus = str(found / "data" / "math500.jsonl")
    tokenizer = {"kind": "bpe", "vocab_size": 300, "corpus": corpus}
    settings = PolicySettings(config=config, tokenizer=NewTokenizerSettings(**tokenizer))
    save_policy(load_policy(settings, 1), load_tokenizer(settings), found / "policy")
    overlay(found / "policy.yaml", model={"init_args": {"policy": {"config": config, "tokenizer": tokenizer}}})
    overlay(found / "few.yaml", evaluation={"init_args": FEW_TOKENS})
    return found


def overlay(path: Path, **content: Any) -> Path:
    """A configuration file; the trainer's part is the same in all."""
    trainer = {"accelerator": "cpu", "logger": False, "default_root_dir": str(path.parent / "run")}
    path.write_text(yaml.safe_dump({"trainer": trainer, **content}))
    return path


def from_folder(data: Path) -> tuple[str, str]:
    return "--data.benchmarks.aime24.source.folder", str(data)


def oracle(path: Path, data: Path, benchmarks: dict[str, Any] | None = None, **settings: Any) -> Path:
    """An overlay whose engine answers from the files in ``data``."""
    engine = {"class_path": "tests.oracle.OracleEngine", "init_args": {"folder": str(data), **settings}}
    few = {"aime24": {"samples": 2, "pass_k": [1, 2]}, "amc": {"samples": 2, "pass_k": [1, 2]}}
    return overlay(path, evaluation={"init_args": {"engine": engine, "benchmarks": {**few, **(benchmarks or {})}}})


def scores(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    return {name: each["scores"] for name, each in read_results(out)["benchmarks"].items()}


def accuracies(out: Path) -> dict[str, float]:
    return {name: each["accuracy"]["value"] for name, each in scores(out).items()}


def test_an_hf_folder_gives_the_table_the_scores_and_the_samples(folder: Path) -> None:
    out = folder / "hf"
    few = ("--config", folder / "few.yaml")
    where = ("--model.policy.path", folder / "policy", *from_folder(folder / "data"))
    reference = ("--evaluation.reference", "Qwen2.5-7B")
    shown = succeed("validate", *MATH, *few, *where, *reference, "--evaluation.folder", out)
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith(FIVE)]
    assert rows[:5] == list(FIVE)
    assert "macro average" in shown
    assert list(scores(out)) == list(FIVE)
    assert {"pass@1", "pass@2", "maj@k"} <= scores(out)["aime24"].keys()
    assert len(read_samples(out, "aime24")) == 6
    results = read_results(out)
    assert results["settings"]["policy"]["path"] == str(folder / "policy")
    assert results["benchmarks"]["math500"]["problems"] == 5
    first = results["settings"]["first_prompts"]["math500"]
    assert first["text"].startswith("Question: ")
    assert first["text"].endswith("\nAnswer:")
    assert len(first["token_ids"]) == len(first["tokens"])
    assert first["end_tokens"] == ["<|im_end|>"]
    assert "published scores of Qwen2.5-7B" in shown
    (greedy,) = (x for x in results["published"] if (x["benchmark"], x["source"]) == ("math500", "SimpleRL-Zoo"))
    assert (greedy["published"], greedy["within"]) == (64.6, None)
    assert greedy["differs"] == ["problems 5 (500)", "max_new_tokens 6 (16000)", "prompt"]


def test_a_checkpoint_of_fit_is_evaluated_like_the_folder_that_the_run_exported(folder: Path) -> None:
    config = folder / "fit" / "fit.yaml"
    config.parent.mkdir()
    overlay(config, checkpoint={"every_n_iterations": 2}, export={}, rollouts=_digit_rewards())
    data = ("--config", folder / "policy.yaml", "--config", config, "--data.train.path", _sums(folder))
    succeed("fit", "--config", "configs/gsm8k/small_policy.yaml", *data, "--data.iterations", "2")
    run_folder = folder / "fit" / "run"
    outs = []
    for name, path in {"ckpt": run_folder / "checkpoints" / "last.ckpt", "export": run_folder / "hf"}.items():
        outs.append(folder / "fit" / name)
        where = ("--model.policy.path", path, *from_folder(folder / "data"))
        succeed("validate", *MATH, "--config", folder / "few.yaml", *where, "--evaluation.folder", outs[-1])
    assert read_results(outs[0])["model_hash"] == read_results(outs[1])["model_hash"]
    for out in outs:  # asked as in training, configs/gsm8k/small_policy.yaml, and not by the fallback of math.yaml
        assert read_results(out)["settings"]["prompts"]["math500"]["style"] == "qwen_math"
        assert "<|im_start|>system" in read_results(out)["settings"]["first_prompts"]["math500"]["text"]
    for name in FIVE:
        first, second = ([row.completion for row in read_samples(out, name)] for out in outs)
        assert first == second


def _digit_rewards() -> dict[str, Any]:
    reward = {"class_path": "ImportedReward", "init_args": {"path": "tests.running:digit_share"}}
    return {"init_args": {"group_size": 2, "sampling": {"max_new_tokens": 8}, "rewards": [reward]}}


def _sums(folder: Path) -> str:
    rows = [{"id": f"n{i}", "problem": f"What is {i} + 1 ?", "answer": str(i + 1)} for i in range(8)]
    return write_json_lines(folder / "sums.jsonl", rows)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lost.ckpt", "model.policy.path: there is no checkpoint"),
        ("few.yaml", "is a file; give the folder that holds the model"),
        ("data", "is no HF model folder: it holds no config.json"),
        ("broken.ckpt", "is no checkpoint: torch.save did not write it"),
    ],
)
def test_a_policy_that_is_none_gives_one_line(
    folder: Path, path: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (folder / "broken.ckpt").write_bytes(b"not a checkpoint")
    where = ("--model.policy.path", str(folder / path), *from_folder(folder / "data"))
    quiet = ("--trainer.logger", "false", "--trainer.accelerator", "cpu")
    assert main(["validate", *MATH, *where, *quiet]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_stopped_and_two_ranks_give_the_same(folder: Path) -> None:
    """Samples 0 are right and samples 1 wrong, so that scores lie between 0 and 1."""
    common = ("validate", *MATH, "--config", folder / "policy.yaml", *from_folder(folder / "data"))
    common = (*common, "--data.benchmark_batch_size", "1")

    def evaluate(name: str, out: Path, *more: str, **settings: Any) -> tuple[Any, ...]:
        log = str(folder / f"{name}.log")
        config = oracle(folder / f"{name}.yaml", folder / "data", alternate=True, log=log, **settings)
        return *common, "--config", config, "--evaluation.folder", out, *more

    succeed(*evaluate("whole", folder / "whole"))
    process = start(*evaluate("killed", folder / "cut", stall_after=6), log=folder / "killed.out")
    try:
        _wait_for_requests(folder / "killed.log", 7, process)
        refused = run(*evaluate("refused", folder / "cut"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert refused.returncode == 2
    assert f"evaluation.folder: {folder / 'cut'}: process {process.pid}" in refused.stderr
    assert not (folder / "refused.log").exists()
    assert not (folder / "cut" / "results.json").exists()
    succeed(*evaluate("rest", folder / "cut"))
    asked = [len(_requests(folder / f"{name}.log")) for name in ("whole", "rest")]
    assert asked[0] == sum(map(len, ANSWERS.values()))
    assert asked[1] == asked[0] - 6
    assert scores(folder / "cut") == scores(folder / "whole")
    assert accuracies(folder / "whole") == dict.fromkeys(FIVE, 1.0) | {"aime24": 0.5, "amc": 0.5}

    succeed(*evaluate("ranks", folder / "ranks", "--trainer.devices", "2", "--trainer.strategy", "ddp"))
    assert scores(folder / "ranks") == scores(folder / "whole")
    for name in FIVE:
        assert read_samples(folder / "ranks", name) == read_samples(folder / "whole", name)
    assert sorted(_requests(folder / "ranks.log")) == sorted(_requests(folder / "whole.log"))


OTHER_GRADER = """

def _all_wrong(self, items):
    return [Verdict(False, "mismatch", None) for _ in items]


Grader.grade = _all_wrong
"""


@pytest.mark.slow
def test_what_another_grader_judged_before_a_kill_is_graded_anew_and_not_generated_again(folder: Path) -> None:
    """The evaluation that is killed runs from a copy of the project, whose grader calls everything wrong."""
    other = folder / "other"
    for name in ("app", "callbacks", "configs", "datamodules", "modules", "tests"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", other)
    with (other / "app" / "grading" / "grader.py").open("a") as code:
        code.write(OTHER_GRADER)

    def evaluate(name: str, **settings: Any) -> tuple[Any, ...]:
        config = oracle(folder / f"{name}.yaml", folder / "data", log=str(folder / f"{name}.log"), **settings)
        common = ("--config", folder / "policy.yaml", *from_folder(folder / "data"), "--data.benchmark_batch_size", "1")
        return "validate", *MATH, *common, "--config", config, "--evaluation.folder", folder / "regraded"

    with (folder / "before.out").open("wb") as out:
        command = [sys.executable, "main.py", *map(str, evaluate("before", stall_after=6))]
        process = subprocess.Popen(command, cwd=other, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_for_requests(folder / "before.log", 7, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    written = [line for path in (folder / "regraded").rglob("*.jsonl") for line in path.open()]
    assert {json.loads(line)["correct"] for line in written} == {False}

    shown = succeed(*evaluate("after"))
    assert "aime24: 6 samples are graded anew" in shown
    assert accuracies(folder / "regraded") == dict.fromkeys(FIVE, 1.0)
    assert len(_requests(folder / "after.log")) == sum(map(len, ANSWERS.values())) - 6


def _requests(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _wait_for_requests(log: Path, wanted: int, process: Any) -> None:
    deadline = time.monotonic() + 600
    while len(_requests(log)) < wanted:
        assert process.poll() is None, "the evaluation ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@needs_real_files
def test_golds_score_100_percent_on_all_six_real_benchmarks_wrong_answers_0_and_the_two_compare(folder: Path) -> None:
    data = REAL_FOLDER / "benchmarks"
    source = {"class_path": "RegisteredSource"}
    benchmarks = {name: {"source": {**source, "init_args": {"name": name, "folder": str(data)}}} for name in SIX}
    six = overlay(folder / "six.yaml", data={"init_args": {"benchmarks": benchmarks}})
    common = ("validate", *MATH, "--config", folder / "policy.yaml", "--config", six)
    for name, wrong in (("right", False), ("wrong", True)):
        config = oracle(folder / f"{name}.yaml", data, wrong=wrong)
        succeed(*common, "--config", config, "--evaluation.folder", folder / name)
    missed = [row for name in SIX for row in read_samples(folder / "right", name) if not row.correct]
    assert [(row.benchmark, row.id, row.answer, row.reason) for row in missed] == []
    assert accuracies(folder / "right") == dict.fromkeys(SIX, 1.0)
    assert accuracies(folder / "wrong") == dict.fromkeys(SIX, 0.0)
    sizes = {name: each["problems"] for name, each in read_results(folder / "right")["benchmarks"].items()}
    assert sizes == {"aime24": 30, "math500": 500, "olympiadbench": 675, "minerva": 272, "amc": 83, "amc23": 40}

    shown = succeed(folder / "wrong", folder / "right", module="app.evaluation.comparison").splitlines()
    row = next(line.split() for line in shown if line.startswith("math500 "))
    assert row == ["math500", "500", "0.0", "100.0", "100.0", "[100.0,", "100.0]", "500", "0"]
    assert any(line.startswith("aime24, newly right: ") for line in shown)


@pytest.mark.slow
def test_vllm_generates_what_transformers_does(folder: Path) -> None:
    pytest.importorskip("vllm")
    outs = []
    for name, more in {"transformers": (), "vllm": ("--config", "configs/benchmarks/vllm.yaml")}.items():
        outs.append(folder / name)
        where = ("--model.policy.path", folder / "policy", *from_folder(folder / "data"))
        few = ("--config", folder / "few.yaml", "--evaluation.folder", outs[-1])
        succeed("validate", *MATH, *more, *few, *where)
    assert [read_results(out)["settings"]["engine"] for out in outs] == ["TransformersEngine", "VLLMEngine"]
    for name in ("math500", "olympiadbench", "minerva"):  # the greedy ones
        first, second = ([row.completion for row in read_samples(out, name)] for out in outs)
        assert first == second
    shown = succeed(*outs, "--benchmarks", *FIVE, module="app.evaluation.comparison")
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(FIVE)][:5] == list(FIVE)
