"""What a run leaves behind: checkpoints, HF folders, the table of completions, progress lines."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import ConfigurationError
from app.rollout.update_plan import UpdateSettings
from callbacks import CompletionsTable, HFExport, IterationCheckpoint, IterationProgress
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts, weights_of


def test_checkpoints_are_by_iteration_whatever_the_updates(tmp_path: Path) -> None:
    keep = IterationCheckpoint(every_n_iterations=2, keep=2, folder=str(tmp_path / "c"))
    module = make_module(updates=UpdateSettings(3))
    fit(tmp_path, module, make_data(iterations=7), [make_rollouts(), keep])
    names = sorted(path.name for path in (tmp_path / "c").glob("[!.]*"))
    assert names == ["iteration-000006.ckpt", "iteration-000007.ckpt", "last.ckpt"]
    last = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "iteration-000007.ckpt"
    saved = {name.removeprefix("policy."): tensor for name, tensor in last["state_dict"].items()}
    assert equal_weights(saved, weights_of(module))


class Stop(Callback):
    """Ends the run after an iteration, as ``trainer.max_time`` does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = batch_idx == 1


def test_a_run_whose_time_is_up_is_saved_and_goes_on_from_there(tmp_path: Path) -> None:
    keep = IterationCheckpoint(every_n_iterations=50, folder=str(tmp_path / "c"))
    fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(), keep, Stop()])
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "iteration-000002.ckpt"
    whole, resumed = make_module(), make_module()
    fit(tmp_path, whole, make_data(iterations=4), [make_rollouts()])
    fit(tmp_path, resumed, make_data(iterations=4), [make_rollouts()], tmp_path / "c" / "last.ckpt")
    assert equal_weights(weights_of(whole), weights_of(resumed))


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind_and_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, whole = IterationCheckpoint(every_n_iterations=1, folder=str(tmp_path / "c")), Trainer.save_checkpoint

    def full_disk(trainer: Trainer, path: Path, *_: Any) -> None:
        whole(trainer, path)
        if trainer.fit_loop.epoch_loop.batch_progress.current.processed >= 2:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(), keep])
    assert sorted(path.name for path in (tmp_path / "c").glob("[!.]*")) == ["iteration-000001.ckpt", "last.ckpt"]
    assert keep.last == tmp_path / "c" / "last.ckpt"
    assert torch.load(keep.last, weights_only=True)["global_step"] == 1


def test_a_resumed_run_leaves_the_checkpoints_that_it_came_from(tmp_path: Path) -> None:
    """Two runs can branch off from one."""
    first = IterationCheckpoint(every_n_iterations=2, folder=str(tmp_path / "first"))
    fit(tmp_path, make_module(), make_data(iterations=2), [make_rollouts(), first])
    before = sorted(path.name for path in (tmp_path / "first").glob("[!.]*"))
    for name in ("branch", "other"):
        keep = IterationCheckpoint(every_n_iterations=1, folder=str(tmp_path / name))
        source = tmp_path / "first" / "last.ckpt"
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(), keep], source)
        assert sorted(path.name for path in (tmp_path / "first").glob("[!.]*")) == before
        assert (tmp_path / "first" / "last.ckpt").exists()
        assert sorted(path.name for path in (tmp_path / name).glob("[!.]*")) == ["iteration-000004.ckpt", "last.ckpt"]


@pytest.mark.parametrize(("mode", "best_at"), [("max", 2), ("min", 3)])
def test_the_best_by_a_metric_is_kept(tmp_path: Path, mode: str, best_at: int) -> None:
    values = [0.3, 0.5, 0.2, 0.2]
    scores = iter(values)

    class Scores(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("eval/x/accuracy", next(scores), logger=False)

    from tests.running import make_benchmarks

    keep = IterationCheckpoint(9, monitor="eval/x/accuracy", mode=mode, folder=str(tmp_path / "c"))
    data = make_data(iterations=4, benchmarks=make_benchmarks(2))
    fit(tmp_path, make_module(), data, [make_rollouts(), Scores(), keep], val_check_interval=1)
    best = torch.load(tmp_path / "c" / "best.ckpt", weights_only=True)
    assert best["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == best_at
    assert keep.best_score == pytest.approx(values[best_at - 1])


def test_a_metric_that_nobody_logs_is_named_with_those_there_are(tmp_path: Path) -> None:
    from tests.running import make_benchmarks

    keep = IterationCheckpoint(monitor="eval/nope/accuracy", folder=str(tmp_path))
    data = make_data(iterations=1, benchmarks=make_benchmarks(2))
    with pytest.raises(ConfigurationError, match=r"checkpoint.monitor.*eval/nope/accuracy.*reward"):
        fit(tmp_path, make_module(), data, [make_rollouts(), keep], val_check_interval=1)


@pytest.mark.parametrize("changes", [{"every_n_iterations": 0}, {"keep": 0}, {"mode": "best"}])
def test_settings_of_checkpoints_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"checkpoint.{next(iter(changes))}"):
        IterationCheckpoint(**changes)


def test_the_export_is_an_hf_folder_that_transformers_loads(tmp_path: Path) -> None:
    module = make_module()
    export = HFExport(str(tmp_path / "hf"), every_n_iterations=2)
    fit(tmp_path, module, make_data(iterations=3), [make_rollouts(), export])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert equal_weights(dict(loaded.state_dict()), weights_of(module))
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("Tom has 25 apples .").input_ids
    assert ids == module.tokenizer("Tom has 25 apples .").input_ids
    earlier = AutoModelForCausalLM.from_pretrained(tmp_path / "hf-iteration-2")
    assert not equal_weights(dict(earlier.state_dict()), weights_of(module))


def test_an_export_never_takes_the_place_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"export\.folder: .*papers holds other files"):
        HFExport(str(tmp_path / "papers"))
    with pytest.raises(ConfigurationError, match=r"export\.folder: .*thesis\.txt is a file"):
        HFExport(str(tmp_path / "papers" / "thesis.txt"))
    (tmp_path / "empty").mkdir()
    HFExport(str(tmp_path / "empty"))


def test_files_that_appear_while_a_run_learns_are_not_replaced_either(tmp_path: Path) -> None:
    export = HFExport(str(tmp_path / "hf"))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"export\.folder"):
        fit(tmp_path, make_module(), make_data(iterations=1), [make_rollouts(), export])
    assert (tmp_path / "hf" / "thesis.txt").read_text() == "precious"


def test_the_table_of_completions_is_in_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run")
    callbacks = [make_rollouts(), CompletionsTable(every_n_iterations=2, prompts=1)]
    fit(tmp_path, make_module(), make_data(iterations=4), callbacks, logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in events.Tensors("completions/text_summary")] == [1, 3]
    text = events.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    shown, _, table = text.partition("\n\n| problem")
    assert "text: " in shown
    assert "&lt;user&gt;" in shown or "&#60;user&#62;" in shown
    lines = f"| problem{table}".splitlines()
    assert lines[0].startswith("| problem | gold | completion | tokens | finish | digit&#95;share | reward |")
    assert len(lines) == 2 + 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert events.Scalars("reward")[-1].step == 3


def test_progress_lines_name_iteration_reward_rate_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [make_rollouts(), IterationProgress(seconds_between_lines=0)]
    fit(tmp_path, make_module(), make_data(iterations=2), callbacks, enable_progress_bar=True)
    lines = re.findall(r"^iteration .*", capsys.readouterr().err, flags=re.MULTILINE)
    assert len(lines) == 2
    assert re.fullmatch(r"iteration 1/2, reward [\d.]+, tok/s [\d,.]+, \d\d:\d\d left", lines[0])
    assert lines[1].startswith("iteration 2/2")
