"""What an iteration logs: what it has measured itself and nothing else, on disk before a checkpoint counts it."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector


class IterationMetrics(_LoggerConnector):
    """Takes the place of Lightning's connector, which keeps every metric that was ever logged: an iteration without one
    of that name would show the former's to loggers, progress bar and monitors once more.

    What an evaluation has logged stays until the next one.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._of_iteration: set[str] = set()

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """To be called in ``setup``, before anything is logged; safe to call again."""
        if not isinstance(trainer._logger_connector, cls):
            trainer._logger_connector = cls(trainer)

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        if self.trainer.training:
            self._forget_steps()
            for shown in (self._callback_metrics, self._logged_metrics, self._progress_bar_metrics):
                for name in self._of_iteration:
                    shown.pop(name, None)  # type: ignore[attr-defined]
            self._of_iteration = set()
        super().on_batch_start(batch, dataloader_idx)

    def on_batch_end(self) -> None:
        if self.trainer.training:
            self._of_iteration |= {name for kind in self.metrics.values() for name in kind}  # type: ignore[attr-defined]
        super().on_batch_end()

    def write(self) -> None:
        """Hands what the iteration has logged so far to the loggers, now instead of after the last callback, and has
        them write it to their files. What is logged later follows as ever."""
        self.on_batch_end()
        self.update_train_step_metrics()
        self._forget_steps()

    def _forget_steps(self) -> None:
        """Values of single iterations; what is averaged over an epoch goes on adding up."""
        assert self.trainer._results is not None
        for metric in self.trainer._results.result_metrics:
            metric._forward_cache = None


def write_metrics(trainer: Trainer) -> None:
    """See :meth:`IterationMetrics.write`: for callbacks after which the iteration counts as done."""
    connector = trainer._logger_connector
    assert isinstance(connector, IterationMetrics), "PolicyModule.setup comes first"
    connector.write()
