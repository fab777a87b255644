"""Says in words when a run collapses, and stops it where it is told to."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from app.errors import DivergenceError, require
from app.rollout.collapse import WORTH_A_WARNING, CollapseLimits, CollapseWatch

log = logging.getLogger(__name__)


class CollapseAlarms(Callback):
    """Warns once of each sign of collapse, with what to look at; a run without this key does so too.

    A run that it stops leaves a checkpoint of the last iteration, beside the former ones.

    Args:
        warn: the limits beyond which it warns.
        stop: the limits beyond which the run stops, with exit code 1; none by default.
        patience: iterations in a row that must lie beyond a limit.
    """

    def __init__(
        self,
        warn: CollapseLimits = WORTH_A_WARNING,
        stop: CollapseLimits = CollapseLimits(),  # noqa: B008  frozen: shared safely
        patience: int = 3,
    ) -> None:
        require(patience >= 1, "must be at least 1", patience, "alarms.patience")
        self.warn = CollapseWatch(warn, patience)
        self.stop = CollapseWatch(stop, patience)
        self._reasons: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two updates, where a checkpoint can be left."""
        if self._reasons:
            raise DivergenceError(f"stopped after iteration {batch_idx} by alarms.stop: {'; '.join(self._reasons)}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # the same on all ranks
        self._reasons = list(self.stop.spoken(metrics))
        for words in self.warn.spoken(metrics):
            if trainer.is_global_zero and not self._reasons:  # which say it once more
                log.warning("iteration %d: %s", batch_idx + 1, words)
