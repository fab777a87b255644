"""What logging costs an iteration, at the size of ``make quickstart`` and with default settings.

    .venv/bin/python -m benchmarks.logging_cost --warm-start runs/quickstart/warm-start/hf

The same run is made with everything that is logged, and with nothing: no logger, no callback that logs, and a module
whose ``log_dict`` does nothing. Repeats take turns. What is compared is the time from the start of one iteration to the
start of the next, whatever falls into it: histograms and table, which come every tenth iteration, count as they do in a
run. Both draw the same completions, for they have the same seed. Evaluations and checkpoints are left out of both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Any
from unittest import mock

from lightning import Callback, LightningModule

from app.cli.main import main as command_line
from benchmarks.figures import Figure, add_json_option, write
from benchmarks.sampling_speed import describe_machine
from callbacks import CollapseAlarms, Dashboard, RunSummary

CONFIG = "configs/quickstart/grpo_lambda.yaml"
SILENT = ["--traces", "null", "--completions", "null", "--credit", "null", "--trainer.logger", "false"]
KINDS: dict[str, list[str]] = {"logged": [], "silent": SILENT}
LEFT_OUT = 10
"""Iterations at the start that are not counted: caches are filled, and the first comparison of engine and trainer."""


STARTS: list[float] = []


class Clock(Callback):
    """Notes when each iteration starts."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        STARTS.append(time.perf_counter())


def silenced() -> ExitStack:
    """Within it nothing is logged."""
    stack = ExitStack()
    for callback in (Dashboard, CollapseAlarms, RunSummary):
        for hook in ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_train_end"):
            stack.enter_context(mock.patch.object(callback, hook, getattr(Callback, hook)))
    stack.enter_context(mock.patch.object(LightningModule, "log_dict", return_value=None))
    return stack


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logging_cost", description=__doc__)
    parser.add_argument("--warm-start", default="runs/quickstart/warm-start/hf")
    parser.add_argument("--iterations", type=int, default=51, help="of each run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind")
    add_json_option(parser)
    options = parser.parse_args()
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(options.repeats):
        for kind in sorted(KINDS, reverse=bool(repeat % 2)):
            spent[kind].append(measure(kind, options))
            print(f"{kind}: {spent[kind][-1]:.4f} s an iteration", flush=True)
    median = {kind: statistics.median(seconds) for kind, seconds in spent.items()}
    ratio = statistics.median(one / other for one, other in zip(*spent.values(), strict=True))
    print(f"\n{describe_machine()}; medians of {options.repeats} runs of {options.iterations} iterations")
    print(f"logged {median['logged']:.4f} s, silent {median['silent']:.4f} s an iteration; ratio {ratio:.4f}")
    figures = {f"{kind} iteration": Figure(seconds, "s", "lower") for kind, seconds in median.items()}
    write(options, "logging_cost", figures | {"logged / silent": Figure(ratio, "", "lower")}, runs=spent)
    return 0


def measure(kind: str, options: argparse.Namespace) -> float:
    """Mean seconds of an iteration of one run, its first ones left out."""
    STARTS.clear()
    with silenced() if kind == "silent" else ExitStack(), tempfile.TemporaryDirectory() as folder:
        arguments = ["--model.policy.path", options.warm_start, "--trainer.default_root_dir", folder]
        arguments += ["--data.iterations", str(options.iterations), "--evaluation", "null", "--data.benchmarks", "{}"]
        arguments += ["--checkpoint", "null", "--export", "null", "--trainer.enable_progress_bar", "false"]
        arguments += ["--trainer.callbacks", '[{"class_path": "benchmarks.logging_cost.Clock"}]']
        code = command_line(["fit", "--config", CONFIG, *arguments, *KINDS[kind]])
    if code:
        raise SystemExit(f"the run ended with exit code {code}")
    return (STARTS[-1] - STARTS[LEFT_OUT]) / (len(STARTS) - 1 - LEFT_OUT)


if __name__ == "__main__":
    from benchmarks import logging_cost  # whose Clock the command line imports

    sys.exit(logging_cost.main())
