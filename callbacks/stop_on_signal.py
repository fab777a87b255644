"""Ctrl-C, SIGTERM and SLURM's warning end a run between two updates, on all ranks together."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from app.rollout.ranks import RolloutRanks
from app.stopping import STOP


class StopOnSignal(Callback):
    """Raises :class:`app.stopping.StopRequested` before an iteration begins, once a signal has reached any rank.

    Rollout engines do so in the middle of a rollout, and :class:`callbacks.IterationCheckpoint` saves what is behind.
    It comes first among the callbacks: the others' work for an iteration that is not going to happen is spared.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector = _NotedSignals(trainer, RolloutRanks())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        STOP.check()


class _NotedSignals(_SignalConnector):
    """Takes the place of Lightning's handlers, of which one broadcasts from wherever a rank happens to be, and
    SLURM's saves a checkpoint from there, half an update done."""

    def __init__(self, trainer: Trainer, ranks: RolloutRanks) -> None:
        super().__init__(trainer)
        self._ranks = ranks

    def register_signal_handlers(self) -> None:
        """Called by the trainer when everything is loaded. Until then a signal ends the process as ever."""
        environment = self.trainer._accelerator_connector.cluster_environment
        warning = [environment.requeue_signal] if isinstance(environment, SLURMEnvironment) else []
        STOP.install(self._ranks, getattr(self.trainer.strategy.launcher, "procs", []), warning)

    def teardown(self) -> None:
        STOP.restore()
