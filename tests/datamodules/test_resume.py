"""Runs that stop and go on read exactly what an uninterrupted run reads, and ``batch_idx`` is the iteration."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from app.data.sources import HubSource, JsonLinesSource, SyntheticSource
from app.errors import ConfigurationError
from datamodules import MathPromptDataModule, SFTDataModule
from datamodules.base import BenchmarkSettings
from tests.data.files import numbered_rows, write_json_lines
from tests.datamodules.learners import Recorder, SaveAt, trainer

HELDOUT = {"heldout": BenchmarkSettings(SyntheticSource("heldout", size=3))}


def prompts(iterations: int = 6, **changes: Any) -> MathPromptDataModule:
    arguments: dict[str, Any] = {
        "train": SyntheticSource(),
        "benchmarks": HELDOUT,
        "prompts_per_iteration": 4,
        **changes,
    }
    return MathPromptDataModule(iterations=iterations, **arguments)


def examples(iterations: int = 6) -> SFTDataModule:
    return SFTDataModule(SyntheticSource(demonstrations=True), HELDOUT, batch_size=4, iterations=iterations)


def run(data: Any, checkpoint: Path | None = None, callbacks: Any = None, dies_at: int | None = None) -> Recorder:
    module = Recorder(dies_at)
    trainer(callbacks).fit(module, data, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("data", [prompts, examples])
@pytest.mark.parametrize(("at", "iteration"), [("train_batch_end", 2), ("train_batch_end", 3), ("validation_end", 3)])
def test_six_iterations_are_three_and_three(data: Any, at: str, iteration: int, tmp_path: Path) -> None:
    whole = run(data())
    first = run(data(), callbacks=[SaveAt(tmp_path / "a.ckpt", iteration, at)])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*your dataloader is not resumable.*")
        rest = run(data(), tmp_path / "a.ckpt")
    assert [index for index, _ in whole.seen] == list(range(6))
    assert [content[0] for _, content in whole.seen] == list(range(6))
    assert rest.seen == whole.seen[iteration + 1 :]
    assert first.seen == whole.seen


def test_an_iteration_that_was_not_finished_is_done_again(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(prompts(), callbacks=[SaveAt(tmp_path / "a.ckpt", 4, "exception")], dies_at=4)
    assert run(prompts(), tmp_path / "a.ckpt").seen == run(prompts()).seen[4:]


def test_a_finished_run_stays_finished_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(prompts(), callbacks=[SaveAt(tmp_path / "a.ckpt", 5)])
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert run(prompts(), tmp_path / "a.ckpt").seen == []
    assert "all 6 iterations of this run are behind the checkpoint: nothing is left to train" in caplog.text


@pytest.mark.parametrize("at", ["train_batch_end", "validation_end", "train_end"])
def test_a_finished_run_goes_on_with_more_iterations(at: str, tmp_path: Path) -> None:
    run(prompts(), callbacks=[SaveAt(tmp_path / "a.ckpt", 5, at)])
    longer = run(prompts(9), tmp_path / "a.ckpt")
    assert longer.seen == run(prompts(9)).seen[6:]
    assert [index for _, index, _ in longer.validated] == [0]


def test_a_checkpoint_from_beyond_the_end_is_refused(tmp_path: Path) -> None:
    run(prompts(), callbacks=[SaveAt(tmp_path / "a.ckpt", 4)])
    with pytest.raises(
        ConfigurationError, match=r"data\.iterations: the checkpoint has 5 iterations behind it, over 4"
    ):
        run(prompts(4), tmp_path / "a.ckpt")


def test_a_finite_source_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    source = {"train": SyntheticSource(size=7)}
    run(prompts(**source), callbacks=[SaveAt(tmp_path / "a.ckpt", 2)])
    assert run(prompts(**source), tmp_path / "a.ckpt").seen == run(prompts(**source)).seen[3:]


def test_a_streamed_source_goes_on_where_it_was(tmp_path: Path) -> None:
    files = [write_json_lines(tmp_path / "a.jsonl", numbered_rows(17))]

    def streamed() -> MathPromptDataModule:
        return prompts(train=HubSource("json", data_files=files, streaming=True, shuffle_buffer=5))

    run(streamed(), callbacks=[SaveAt(tmp_path / "a.ckpt", 2)])
    assert run(streamed(), tmp_path / "a.ckpt").seen == run(streamed()).seen[3:]


def test_other_data_than_the_checkpoint_had_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(prompts(), callbacks=[SaveAt(tmp_path / "a.ckpt", 2)])
    run(prompts(), tmp_path / "a.ckpt")
    assert "the checkpoint was made with" not in caplog.text
    run(prompts(seed=1), tmp_path / "a.ckpt")
    assert "data.seed is 1, the checkpoint was made with 0: from here on the run reads other problems" in caplog.text


def test_a_training_set_that_has_changed_since_the_checkpoint_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def data(size: int) -> MathPromptDataModule:
        return prompts(train=JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", numbered_rows(size))))

    run(data(9), callbacks=[SaveAt(tmp_path / "a.ckpt", 2)])
    run(data(9), tmp_path / "a.ckpt")
    assert "the checkpoint was made with" not in caplog.text
    run(data(8), tmp_path / "a.ckpt")
    assert "data.train has the content" in caplog.text
