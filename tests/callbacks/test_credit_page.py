"""What a run records of its tokens' credit, and what a resumed one goes on with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.credit.journal import read_lines
from app.errors import ConfigurationError
from app.rollout.update_plan import UpdateSettings
from callbacks import CreditPage, IterationCheckpoint
from tests.running import fit, make_data, make_module, make_rollouts


class Watch(Callback):
    """Keeps what the module knows after each update; ends the run after ``last`` iterations as an error does."""

    def __init__(self, last: int = 99) -> None:
        self.last, self.seen = last, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        experience = pl_module.experience
        self.seen.append((experience.rollout, experience.old_log_probs.clone(), pl_module.last_log_ratio.clone()))
        if batch_idx + 1 == self.last:
            raise RuntimeError("the machine is gone")


def run(folder: Path, checkpoint: Path | None = None, last: int = 99) -> tuple[Path, Watch]:
    """Four iterations with a record each; the folder of the run."""
    logger = TensorBoardLogger(str(folder), name="run")
    watch, keep = Watch(last), IterationCheckpoint(every_n_iterations=2, keep=2)
    callbacks = [make_rollouts(), CreditPage(every_n_iterations=1, prompts=2), keep, watch]
    module = make_module(updates=UpdateSettings(per_rollout=2))
    fit(folder, module, make_data(iterations=4), callbacks, checkpoint, logger=logger)
    return Path(logger.log_dir), watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    return run(tmp_path_factory.mktemp("whole"))


def test_a_record_is_what_the_last_update_of_the_iteration_saw(whole: tuple[Path, Watch]) -> None:
    folder, watch = whole
    records = [record for _, record in read_lines(folder / "credit.jsonl")]
    assert [record["iteration"] for record in records] == [1, 1, 2, 2, 3, 3, 4, 4]
    compared = 0
    for record in records:
        rollout, old, log_ratio = watch.seen[record["iteration"] - 1]
        group = next(n for n, each in enumerate(rollout.batch.problems) if each.problem == record["problem"])
        for completion in record["completions"]:
            row = group * rollout.group_size + completion["index"]
            assert "".join(completion["texts"]).startswith(rollout.texts[row])
            assert completion["reward"] == pytest.approx(rollout.rewards[row], rel=1e-3, abs=1e-9)
            if completion["took_part"]:
                length, compared = completion["length"], compared + 1
                assert completion["old_log_prob"] == pytest.approx(old[row, :length].tolist(), rel=6e-3)
                assert completion["log_ratio"] == pytest.approx(log_ratio[row, :length].tolist(), rel=6e-3, abs=1e-30)
    assert compared > 8


def test_the_page_and_a_picture_lie_in_the_run(whole: tuple[Path, Watch]) -> None:
    folder, _ = whole
    page = (folder / "credit.html").read_text(encoding="utf-8")
    assert page.count('"iteration":') == 8
    assert folder.parent.name + "/version_0" in page
    assert "traces/credit" in EventAccumulator(str(folder)).Reload().Tags()["images"]


def test_a_resumed_run_goes_on_where_its_checkpoint_was_taken(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(tmp_path, last=3)
    former = tmp_path / "run" / "version_0"
    recorded = read_lines(former / "credit.jsonl")
    assert [record["iteration"] for _, record in recorded] == [1, 1, 2, 2, 3, 3]
    with (former / "credit.jsonl").open("ab") as file:
        file.write(b'{"iteration": 4, "prob')  # what a kill in the middle of a line leaves
    resumed, watch = run(tmp_path, former / "checkpoints" / "iteration-000002.ckpt")
    assert resumed != former
    lines = read_lines(resumed / "credit.jsonl")
    assert [record["iteration"] for _, record in lines] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert lines[:4] == recorded[:4]
    problems = [{each.problem for each in rollout.batch.problems} for rollout, _, _ in watch.seen]
    assert all(record["problem"] in problems[record["iteration"] - 3] for _, record in lines[4:])


def test_there_is_no_record_of_tied_groups(tmp_path: Path) -> None:
    from tests.running import reward

    rollouts = make_rollouts(rewards=[reward("always_one")])
    fit(tmp_path, make_module(), make_data(iterations=1), [rollouts, CreditPage(every_n_iterations=1)])
    assert not (tmp_path / "credit.jsonl").exists()
    assert not (tmp_path / "credit.html").exists()


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for settings, key in (({"every_n_iterations": 0}, "every_n_iterations"), ({"max_megabytes": 0}, "max_megabytes")):
        with pytest.raises(ConfigurationError, match=rf"credit\.{key}"):
            CreditPage(**settings)
    with pytest.raises(ConfigurationError, match="supervised"):
        CreditPage().setup(None, torch.nn.Linear(1, 1), "fit")  # type: ignore[arg-type]
