"""Benchmarks beside training and under ``validate``: what they must not change, and what they must not forget."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from app.data.prompts import PromptSettings
from app.data.sources import JsonLinesSource
from app.engines.engine import Completion, GenerationRequest, SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from app.evaluation import benchmarks, numerics
from app.evaluation.results import read_results, versions
from app.evaluation.samples import read_samples
from app.storage.lock import FolderLock
from callbacks import BenchmarkEvaluation, IterationCheckpoint
from datamodules.base import BenchmarkSettings
from tests.running import (
    equal_weights,
    fit,
    make_benchmarks,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
    weights_of,
)

SAMPLED = SamplingSettings(temperature=1.0, max_new_tokens=6)


class CountingEngine(TransformersEngine):
    """Counts the problems that it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        self.asked += len(requests)
        return super().generate(requests)


class Killed(Exception):
    pass


class KillInValidation(Callback):
    """Ends the run when the evaluation after so many iterations begins."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.iteration:
            raise Killed


class SaveAfterValidation(Callback):
    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration, self.path = iteration, path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.iteration:
            trainer.save_checkpoint(self.path)


def evaluation(**changes: Any) -> BenchmarkEvaluation:
    return BenchmarkEvaluation(**({"sampling": SAMPLED, "seed": 4} | changes))


def train(
    folder: Path, callbacks: Sequence[Callback], iterations: int = 4, **trainer: Any
) -> tuple[dict[str, torch.Tensor], Any]:
    """Trains with an evaluation after every second iteration; the weights at the end, and the trainer."""
    module, data = make_module(), make_data(iterations, benchmarks=make_benchmarks())
    made = fit(folder, module, data, [make_rollouts(), *callbacks], **({"val_check_interval": 2} | trainer))
    return weights_of(module), made


def samples(folder: Path, iteration: int) -> list[str]:
    path = folder / "evaluation" / f"iteration-{iteration:06d}" / "samples" / "heldout.jsonl"
    return [json.loads(line)["completion"] for line in path.open()]


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    without, _ = train(tmp_path / "a", [], limit_val_batches=0)
    beside, trainer = train(tmp_path / "b", [evaluation()], val_check_interval=1, num_sanity_val_steps=-1)
    own, _ = train(tmp_path / "c", [evaluation(engine=TransformersEngine())], val_check_interval=1)
    assert equal_weights(without, beside)
    assert equal_weights(without, own)
    evaluated = sorted(path.name for path in (tmp_path / "b" / "evaluation").glob("iteration-*"))
    assert evaluated == [f"iteration-{n:06d}" for n in range(5)]
    assert {"eval/heldout/accuracy", "eval/heldout/no_answer_rate"} <= trainer.callback_metrics.keys()
    assert samples(tmp_path / "b", 0) != samples(tmp_path / "b", 4)


@pytest.mark.parametrize("iteration", [2, 4])
def test_a_run_that_stopped_between_checkpoint_and_evaluation_makes_up_for_it(tmp_path: Path, iteration: int) -> None:
    """4 is the last iteration: nothing is left to train, but its evaluation is."""
    whole, _ = train(tmp_path / "whole", [evaluation()])
    stopped = [KillInValidation(iteration), evaluation(), IterationCheckpoint(every_n_iterations=2, keep=9)]
    with pytest.raises(Killed):
        train(tmp_path / "stopped", stopped)
    checkpoint = tmp_path / "stopped" / "checkpoints" / f"iteration-{iteration:06d}.ckpt"
    module, data = make_module(), make_data(4, benchmarks=make_benchmarks())
    trainer = make_trainer(tmp_path / "resumed", [make_rollouts(), evaluation()], val_check_interval=2)
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint), weights_only=False)
    assert equal_weights(whole, weights_of(module))
    for done in range(iteration, 5, 2):
        assert samples(tmp_path / "resumed", done) == samples(tmp_path / "whole", done)


@pytest.mark.parametrize("iteration", [2, 4])
def test_an_evaluation_that_a_checkpoint_has_behind_it_is_not_repeated(tmp_path: Path, iteration: int) -> None:
    """As ``best.ckpt``, which is saved when the evaluation is over."""
    whole, _ = train(tmp_path / "whole", [evaluation(), SaveAfterValidation(iteration, tmp_path / "after.ckpt")])
    module, data = make_module(), make_data(4, benchmarks=make_benchmarks())
    trainer = make_trainer(tmp_path / "resumed", [make_rollouts(), evaluation()], val_check_interval=2)
    trainer.fit(module, datamodule=data, ckpt_path=str(tmp_path / "after.ckpt"), weights_only=False)
    assert equal_weights(whole, weights_of(module))
    evaluated = sorted(path.name for path in (tmp_path / "resumed" / "evaluation").glob("iteration-*"))
    assert evaluated == [f"iteration-{n:06d}" for n in (2, 4) if n > iteration]


# ── validate ──


def problems_file(folder: Path, answers: Sequence[str] = ("1", "2", "3", "4", "5")) -> Path:
    rows = [{"id": f"row-{i}", "problem": f"what is {i} + 1 ?", "answer": answer} for i, answer in enumerate(answers)]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def validate(
    folder: Path,
    answers: Sequence[str] = ("1", "2", "3", "4", "5"),
    prompt: str = "raw",
    precision: str = "32-true",
    attention: str | None = None,
    **changes: Any,
) -> CountingEngine:
    """Evaluates into ``folder/out``; returns the engine."""
    source = JsonLinesSource(str(problems_file(folder, answers)))
    engine = CountingEngine()
    settings = {"engine": engine, "folder": str(folder / "out")} | changes
    data = make_data(benchmarks={"sums": BenchmarkSettings(source)}, prompt=PromptSettings(prompt))
    module = make_module(policy=replace(policy_settings(), attn_implementation=attention))
    trainer = make_trainer(folder, [evaluation(**settings)], precision=precision)
    trainer.validate(module, datamodule=data, verbose=False)
    return engine


def test_validate_prints_the_table_and_writes_scores_settings_and_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(tmp_path).asked == 5
    results = read_results(tmp_path / "out")
    assert "sums" in capsys.readouterr().out
    assert results["settings"]["prompts"]["sums"]["style"] == "raw"
    assert results["settings"]["engine"] == "CountingEngine"
    assert results["settings"]["sources"] == {"sums": {"file": str(tmp_path / "sums.jsonl")}}
    assert results["settings"]["policy"]["config"]["model_type"] == "llama"
    assert results["benchmarks"]["sums"]["scores"]["accuracy"]["value"] == 0
    assert len(results["model_hash"]) >= 16


def test_a_finished_evaluation_is_not_repeated(tmp_path: Path) -> None:
    validate(tmp_path)
    scores = read_results(tmp_path / "out")
    assert validate(tmp_path).asked == 0
    assert read_results(tmp_path / "out") == scores


@pytest.mark.parametrize(
    "changes",
    [
        {"answers": ("1", "2", "3", "4", "6")},
        {"answers": ("1", "2", "3", "4")},
        {"prompt": "boxed"},
        {"seed": 5},
        {"sampling": SamplingSettings(temperature=0.5, max_new_tokens=6)},
        {"engine": None},
        {"precision": "bf16-mixed"},
        {"attention": "eager"},
    ],
)
def test_samples_made_with_anything_else_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    validate(tmp_path)
    with pytest.raises(ConfigurationError, match="made with other settings"):
        validate(tmp_path, **changes)


@pytest.mark.parametrize(("interrupted", "package"), [(True, "transformers"), (False, "torch")])
def test_samples_of_another_version_of_the_engine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool, package: str
) -> None:
    validate(tmp_path)
    if interrupted:
        merged = tmp_path / "out" / "samples" / "sums.jsonl"
        merged.with_name("sums.rank0.jsonl").write_text("".join(merged.read_text().splitlines(keepends=True)[:2]))
        merged.unlink()
    monkeypatch.setattr(numerics, "versions", lambda: versions() | {package: "0.1"})
    with pytest.raises(ConfigurationError, match=r"made with .*other versions than those now given; choose another"):
        validate(tmp_path)


def test_the_results_name_the_arithmetic(tmp_path: Path) -> None:
    validate(tmp_path, precision="bf16-mixed", attention="eager")
    settings = read_results(tmp_path / "out")["settings"]
    installed = {package: metadata.version(package) for package in ("torch", "transformers")}
    assert settings["numerics"] == {
        "precision": "bf16-mixed",
        "compute_dtype": "bfloat16",
        "attn_implementation": "eager",
        "device": "cpu",
        "engine": {"versions": installed},
    }
    assert settings["engine_settings"] == {}


def test_a_folder_that_cannot_be_written_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigurationError, match=r"evaluation\.folder: cannot write into .*out"):
        validate(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grader_workers": 0}, r"^evaluation\.grader_workers: must be at least 1, got 0"),
        ({"grader_timeout_s": 9}, r"^evaluation\.grader_timeout_s: must be above 0"),
    ],
)
def test_a_grader_that_cannot_work_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        evaluation(**changes)


def test_verdicts_of_another_grader_are_given_anew_and_nothing_is_generated_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validate(tmp_path)
    before = read_samples(tmp_path / "out", "sums")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert validate(tmp_path, grader_timeout_s=1.0).asked == 0
    assert "sums: 5 samples are graded anew" in caplog.text
    after = read_samples(tmp_path / "out", "sums")
    assert [replace(row, grader="") for row in after] == [replace(row, grader="") for row in before]
    assert not {row.grader for row in after} & {row.grader for row in before}
    assert read_results(tmp_path / "out")["settings"]["grader_timeout_s"] == 1.0


def test_a_folder_that_another_evaluation_writes_into_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out"), pytest.raises(ConfigurationError, match=r"evaluation.folder: .*is writing"):
        validate(tmp_path)
    assert validate(tmp_path).asked == 5


def test_gold_answers_that_cannot_be_read_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validate(tmp_path, answers=("1", "t(0,4]", r"\frac{1}{2}"))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert re.match(r"sums: 1 of 3 gold answers cannot be read .*sums row-1 \('t\(0,4\]'\)", lines[0])


def test_a_name_that_cannot_be_that_of_a_file_is_refused(tmp_path: Path) -> None:
    data = make_data(benchmarks={"a/b": BenchmarkSettings(JsonLinesSource(str(problems_file(tmp_path))))})
    with pytest.raises(ConfigurationError, match=r"data\.benchmarks: benchmark name 'a/b': use letters"):
        make_trainer(tmp_path, [evaluation()]).validate(make_module(), datamodule=data, verbose=False)


def test_a_misspelt_benchmark_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"evaluation.benchmarks.sum: .*did you mean 'sums'"):
        validate(tmp_path, benchmarks={"sum": benchmarks.BenchmarkSettings()})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"samples": 4, "temperature": 1.0, "pass_k": (1, 8)}, "pass_k: pass@8 needs k between 1 and samples, 4"),
        ({"samples": 4}, "samples: 4 greedy samples are copies"),
        ({"temperature": -1.0}, "temperature: must be at least 0"),
    ],
)
def test_a_setting_of_a_benchmark_that_cannot_work_is_named_with_the_benchmark(
    settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BenchmarkEvaluation(benchmarks={"sums": benchmarks.BenchmarkSettings(**settings)})
    assert str(caught.value).startswith(f"evaluation.benchmarks.sums.{expected}")


def test_the_results_name_the_checkpoint_whose_weights_were_evaluated(tmp_path: Path) -> None:
    train(tmp_path / "run", [IterationCheckpoint(every_n_iterations=9)], limit_val_batches=0)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    data = make_data(benchmarks={"heldout": replace(make_benchmarks()["heldout"], limit=2)})
    made = make_trainer(tmp_path, [evaluation(folder=str(tmp_path / "out"))])
    made.validate(make_module(), datamodule=data, ckpt_path=str(checkpoint), verbose=False, weights_only=True)
    settings = read_results(tmp_path / "out")["settings"]
    assert settings["ckpt_path"] == str(checkpoint)
    assert settings["limits"] == {"heldout": 2}


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (3, "the last evaluation is after iteration 3, and the policy at its end is not evaluated"),
        (9, "no evaluation follows the one before the first iteration"),
        (2, None),
    ],
)
def test_a_run_that_does_not_evaluate_what_it_ends_with_says_so(
    tmp_path: Path, interval: int, expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, [evaluation()], val_check_interval=interval)
    lines = [record.getMessage() for record in caplog.records if "trainer.val_check_interval" in record.getMessage()]
    assert len(lines) == (expected is not None)
    assert all(str(expected) in line for line in lines)
