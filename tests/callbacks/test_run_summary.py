"""What a run says at its end."""

import logging
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.cli.run_logger import RunLogger
from app.data.sources import SyntheticSource
from callbacks import BenchmarkEvaluation, CollapseAlarms, HFExport, RunSummary
from callbacks.run_summary import _ends
from datamodules import SFTDataModule
from modules import SFTModule
from tests.running import fit, make_benchmarks, make_data, make_module, make_rollouts, policy_settings

SHARE = r"\d\.\d{3} \(\d\.\d{3} – \d\.\d{3}\)"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    (text,) = [line for line in (each.getMessage() for each in caplog.records) if line.startswith("the run is over")]
    return text.splitlines()


def test_a_run_ends_with_what_it_came_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, logger = make_data(4, benchmarks=make_benchmarks(4)), RunLogger(tmp_path / "runs", "run")
    alarms = CollapseAlarms(patience=1)  # the untrained policy writes until it is cut off
    callbacks = [make_rollouts(), BenchmarkEvaluation(), alarms, HFExport(str(tmp_path / "hf")), RunSummary()]
    often = {"logger": logger, "num_sanity_val_steps": -1, "val_check_interval": 4}
    with caplog.at_level(logging.INFO):
        trainer = fit(tmp_path, make_module(), data, callbacks, **often)
    lines = said(caplog)
    assert lines[0] == "the run is over: 4 iterations; start → end, in brackets 95 % intervals"
    assert re.fullmatch(r"  reward            \d\.\d{3} → \d\.\d{3}", lines[1])
    assert re.fullmatch(rf"  heldout/accuracy  {SHARE} → {SHARE}", lines[2])
    total = float(trainer.callback_metrics["speed/tokens/total"])
    assert re.fullmatch(rf"  {total:,.0f} tokens generated in \d\d:\d\d of training", lines[3])
    assert lines[4] == f"  policy: {tmp_path / 'hf'}"
    assert lines[5].startswith("  curves: ")
    assert lines[5].endswith(f"tensorboard --logdir {tmp_path / 'runs'}")
    assert lines[6] == "  warnings:"
    assert re.match(r"    iteration 1: \d+% of the completions are cut off", lines[7])
    events = EventAccumulator(logger.log_dir).Reload()
    (final,) = events.Scalars("final/reward")
    assert (final.step, final.value) == (4, pytest.approx(events.Scalars("reward")[-1].value))
    assert not any(handler in logging.getLogger("callbacks").handlers for handler in [callbacks[-1]._warnings])


def test_the_supervised_stage_speaks_of_its_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=2, iterations=2)
    with caplog.at_level(logging.INFO):
        fit(tmp_path, SFTModule(policy_settings()), examples, [RunSummary()])
    lines = said(caplog)
    assert lines[1].startswith("  loss  ")
    assert lines[2:] == ["  no warnings"]


def test_the_ends_are_means_of_the_first_and_last_iterations() -> None:
    start, end = _ends([0.0, 0.2, *[0.5] * 6, 0.8, 1.0])
    assert (start.value, end.value) == pytest.approx((0.1, 0.9))
    assert start.low == 0.0
    assert start.high == pytest.approx(0.2)
    assert _ends([0.25])[1].value == 0.25
