"""A progress bar that speaks of iterations, reward, accuracy and tokens per second."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = {"reward": "reward", "loss": "loss", "speed/tokens/per_second": "tok/s"}


class IterationProgress(ProgressBar):
    """One bar over the iterations in a terminal; a line every few seconds where the output is a file.

    Args:
        seconds_between_lines: where the output is no terminal.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._enabled = True
        self._bar: tqdm | None = None
        self._next_line = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if self._enabled and trainer.is_global_zero:
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                initial=done,
                total=int(trainer.num_training_batches),
                desc="iteration",
                dynamic_ncols=True,
                disable=not terminal,
            )
            self._first, self._started = done, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        shown = self._shown(trainer)
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(1)
        done, total = batch_idx + 1, int(trainer.num_training_batches)
        if self._bar.disable and (time.monotonic() >= self._next_line or done == total):
            self._next_line = time.monotonic() + self.seconds_between_lines
            left = (time.monotonic() - self._started) / (done - self._first) * (total - done)
            self.print(f"iteration {done}/{total}, {shown}, {tqdm.format_interval(left)} left")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """A line that does not tear the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def _shown(self, trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        found = {label: float(metrics[name]) for name, label in SHOWN.items() if name in metrics}
        scores = {name: float(score) for name, score in metrics.items() if name.endswith("/accuracy")}
        if scores:
            found["accuracy"] = sum(scores.values()) / len(scores)
        return ", ".join(
            f"{label} {value:,.3g}" if value < 1000 else f"{label} {value:,.0f}" for label, value in found.items()
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
