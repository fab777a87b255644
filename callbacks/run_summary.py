"""What a run came to, in a few lines at its end."""

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from app.console import OWN, program
from app.evaluation.intervals import Interval, mean_interval
from callbacks.evaluation_timing import iterations_done
from callbacks.hf_export import HFExport
from callbacks.run_folder import run_folder

EDGE = 10
"""Iterations averaged at either end of a run; a fifth of a shorter one."""
MOST_WARNINGS = 10
LEARNED = ("reward", "loss")
"""The curve by which a stage is judged."""


class RunSummary(Callback):
    """Says at the end of ``fit``: reward (or loss) and benchmarks at its start and end with 95 % intervals, tokens and
    time, where everything lies, and the warnings that fell. Logs ``final/reward``, by which runs can be sorted.

    The interval of the reward is over iterations, those of benchmarks are over problems.
    """

    def __init__(self) -> None:
        self._curve: list[float] = []
        self._accuracies: dict[str, list[list[float]]] = {}
        self._seconds = self._tokens = 0.0
        self._warnings = _Warnings()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            run_folder(trainer)  # which all ranks have to ask for once; the summary is rank 0's
        for name in OWN if stage == "fit" and trainer.is_global_zero else ():
            logging.getLogger(name).addHandler(self._warnings)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for name in OWN:
            logging.getLogger(name).removeHandler(self._warnings)

    def state_dict(self) -> dict[str, Any]:
        held = {"curve": self._curve, "accuracies": self._accuracies, "warnings": self._warnings.lines}
        return held | {"seconds": self._seconds, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._curve, self._accuracies = state_dict["curve"], state_dict["accuracies"]
        self._seconds, self._tokens = state_dict["seconds"], state_dict["tokens"]
        self._warnings.lines = [*state_dict["warnings"], *self._warnings.lines]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = trainer.callback_metrics
        self._curve += [float(metrics[name]) for name in LEARNED if name in metrics][:1]
        self._seconds += float(metrics.get("speed/time/iteration", 0.0))
        self._tokens = float(metrics.get("speed/tokens/total", 0.0))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        for name in metrics:
            if name.startswith("eval/") and f"{name}_low" in metrics:
                found = [float(metrics[key]) for key in (name, f"{name}_low", f"{name}_high")]
                self._accuracies.setdefault(name, []).append(found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if hasattr(pl_module, "experience") and self._curve:
            for logger in trainer.loggers:
                logger.log_metrics({"final/reward": _ends(self._curve)[1].value}, iterations_done(trainer))
        rank_zero_info("\n".join(self.lines(trainer, "reward" if hasattr(pl_module, "experience") else "loss")))

    def lines(self, trainer: Trainer, learned: str) -> list[str]:
        """The summary.

        Args:
            trainer: at the end of its run.
            learned: what the curve is of.
        """
        rows = [(learned, *_ends(self._curve))] if self._curve else []
        for name, found in self._accuracies.items():
            rows.append((name.removeprefix("eval/"), Interval(*found[0]), Interval(*found[-1])))
        width = max((len(name) for name, *_ in rows), default=0)
        learning = [f"  {name:<{width}}  {_shown(start)} → {_shown(end)}" for name, start, end in rows]
        title = f"the run is over: {len(self._curve)} iterations; start → end, in brackets 95 % intervals"
        return [title, *learning, *self._work(), *_places(trainer), *self._fallen()]

    def _work(self) -> list[str]:
        if not self._seconds:
            return []
        return [f"  {self._tokens:,.0f} tokens generated in {tqdm.format_interval(self._seconds)} of training"]

    def _fallen(self) -> list[str]:
        lines = list(dict.fromkeys(self._warnings.lines))
        if not lines:
            return ["  no warnings"]
        more = len(lines) - MOST_WARNINGS
        shown = [f"    {line}" for line in lines[:MOST_WARNINGS]] + [f"    and {more} more"] * (more > 0)
        return ["  warnings:", *shown]


class _Warnings(logging.Handler):
    """The warnings that this project has logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def _ends(curve: list[float]) -> tuple[Interval, Interval]:
    """The means of a curve's first and last iterations, with their intervals."""
    edge = min(EDGE, max(1, len(curve) // 5))
    values = torch.tensor(curve, dtype=torch.float64)
    return mean_interval(values[:edge]), mean_interval(values[-edge:])


def _shown(interval: Interval) -> str:
    if interval.low == interval.high:  # of a single iteration, which says nothing of how far it may be off
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} – {interval.high:.3f})"


def _places(trainer: Trainer) -> list[str]:
    """Where the policy, the page of credit and the curves lie."""
    rows = [("policy", str(each.target(trainer))) for each in trainer.callbacks if isinstance(each, HFExport)]
    page = run_folder(trainer) / "credit.html"
    rows += [("credit of single tokens", str(page))] * page.is_file()
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            rows.append(("curves", f"{program('tensorboard')} --logdir {logger.save_dir}"))
        else:
            rows.append((type(logger).__name__, str(logger.save_dir)))
    return [f"  {name}: {place}" for name, place in rows]
