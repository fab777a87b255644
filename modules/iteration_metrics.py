"""What an iteration logs: what it has measured itself and nothing else, on disk before a checkpoint counts it."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector


class IterationMetrics(_LoggerConnector):
    """Takes the place of Lightning's connector, which keeps every metric that was ever logged: an iteration without one
    of that name would show the former's to loggers, progress bar and monitors once more.

    What an evaluation has logged stays until the next one.

    Lightning's ``log`` keeps a metric object for every name and asks all of them whenever one looks: for the hundred
    numbers of an iteration that cost more than a forward pass of a small model. Those that need no averaging come by
    :meth:`note` instead.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._of_iteration: set[str] = set()
        self._noted: dict[str, torch.Tensor] = {}

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """To be called in ``setup``, before anything is logged; safe to call again."""
        if not isinstance(trainer._logger_connector, cls):
            trainer._logger_connector = cls(trainer)

    def note(self, values: Mapping[str, float]) -> None:
        """Logs numbers of this iteration, the same on all ranks, as ``log_dict`` would."""
        numbers = torch.tensor(list(values.values()), dtype=torch.float32).unbind()
        self._noted.update(zip(values, numbers, strict=True))

    @property
    def metrics(self) -> Any:
        """Lightning's own, and while iterations run those that were noted."""
        found: Any = super().metrics
        for kind in ("callback", "log"):
            found[kind].update(self._shown)
        return found

    @property
    def callback_metrics(self) -> Any:
        """As Lightning's, which looks no further where nothing came by ``log``."""
        self._callback_metrics.update(self._shown)  # type: ignore[attr-defined]
        return super().callback_metrics

    @property
    def _shown(self) -> dict[str, torch.Tensor]:
        iterating = self.trainer.training and self._first_loop_iter is not None
        return self._noted if iterating else {}

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        if self.trainer.training:
            self._forget_steps()
            for shown in (self._callback_metrics, self._logged_metrics, self._progress_bar_metrics):
                for name in self._of_iteration:
                    shown.pop(name, None)  # type: ignore[attr-defined]
            self._of_iteration, self._noted = set(), {}
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
        self._noted = {}

    def _forget_steps(self) -> None:
        """Values of single iterations; what is averaged over an epoch goes on adding up."""
        assert self.trainer._results is not None
        for metric in self.trainer._results.result_metrics:
            metric._forward_cache = None


def note_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """See :meth:`IterationMetrics.note`."""
    _of(trainer).note(values)


def write_metrics(trainer: Trainer) -> None:
    """See :meth:`IterationMetrics.write`: for callbacks after which the iteration counts as done."""
    _of(trainer).write()


def _of(trainer: Trainer) -> IterationMetrics:
    connector = trainer._logger_connector
    assert isinstance(connector, IterationMetrics), "PolicyModule.setup comes first"
    return connector
