"""Ctrl-C, SIGTERM and SLURM's warning end a run between two updates, on all ranks together."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_info

from app.engines.ranks import RolloutRanks
from app.slurm import note_checkpoint, requeue_job
from app.stopping import STOP
from callbacks.iteration_checkpoint import IterationCheckpoint
from callbacks.rollouts import RolloutCallback


class StopOnSignal(Callback):
    """Raises :class:`app.stopping.StopRequested` before an iteration begins, once a signal has reached any rank.

    Rollout engines do so in the middle of a rollout, and :class:`callbacks.IterationCheckpoint` saves what is behind.
    It comes first among the callbacks: the others' work for an iteration that is not going to happen is spared.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector = _NotedSignals(trainer, RolloutRanks())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if any(isinstance(each, RolloutCallback) for each in trainer.callbacks):
            STOP.obey()  # the ranks have agreed when the last iteration was counted, and will in the rollout
        else:
            STOP.check()


class _NotedSignals(_SignalConnector):
    """Takes the place of Lightning's handlers, of which one broadcasts from wherever a rank happens to be, and
    SLURM's saves a checkpoint from there, half an update done."""

    def __init__(self, trainer: Trainer, ranks: RolloutRanks) -> None:
        super().__init__(trainer)
        self._ranks = ranks

    def register_signal_handlers(self) -> None:
        """Called by the trainer when everything is loaded. Until then a signal ends the process as ever."""
        warning = [] if self._slurm is None else [self._slurm.requeue_signal]
        STOP.install(self._ranks, getattr(self.trainer.strategy.launcher, "procs", []), warning)

    def teardown(self) -> None:
        """Called by the trainer when everything is saved."""
        STOP.restore()
        if STOP.stopping and self._slurm is not None and self.trainer.is_global_zero:
            self._prepare_restart(self._slurm)

    @property
    def _slurm(self) -> SLURMEnvironment | None:
        environment = self.trainer._accelerator_connector.cluster_environment
        return environment if isinstance(environment, SLURMEnvironment) else None

    def _prepare_restart(self, slurm: SLURMEnvironment) -> None:
        """SLURM may restart the job after SIGTERM by itself; after its warning it is asked to, as Lightning does."""
        saving = [each for each in self.trainer.callbacks if isinstance(each, IterationCheckpoint)]
        last = saving[0].last if saving else None
        if last is not None:
            note_checkpoint(Path(self.trainer.default_root_dir), last)
        if slurm.auto_requeue and STOP.received == slurm.requeue_signal:
            refusal = "the job is not requeued: there is no checkpoint that it could go on from"
            rank_zero_info(refusal if last is None else requeue_job())
