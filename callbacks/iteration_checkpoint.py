"""Checkpoints by iteration: Lightning's own counts optimiser steps, of which an iteration may take several."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from app.errors import CommonError, ConfigurationError, DivergenceError
from app.policy.finite import NotFinite, weights_not_finite
from app.stopping import StopRequested
from app.storage.checksums import file_names, list_files, write_list
from app.storage.durable import clear_unfinished, install, link, remove, unfinished
from app.storage.lock import FolderLock, clear_dead
from callbacks.run_folder import run_folder
from modules.iteration_metrics import write_metrics

if TYPE_CHECKING:
    from modules.policy_module import PolicyModule

RESTART_PATIENCE_S = 10.0
"""A run that was killed lets go of its folder when its last child has ended."""


class IterationCheckpoint(Checkpoint):
    """Keeps ``iteration-<n>.ckpt``, ``last.ckpt`` (a link to the newest) and ``best.ckpt``.

    A checkpoint is written under another name, synced and put into its place in one step, so that neither a kill nor
    a power failure leaves half a one. Weights that are not finite are not saved. A run that an error or a signal ends
    between two updates saves the iterations behind it first, and lets the former checkpoints be.

    Args:
        every_n_iterations: how often; the last iteration is always saved.
        keep: how many of the newest to keep.
        monitor: a logged metric, such as ``eval/heldout/accuracy``; after each evaluation that betters it
            ``best.ckpt`` is written. Null for no best.
        mode: whether "max" or "min" of ``monitor`` is best.
        folder: by default ``checkpoints`` in the run's folder.
    """

    def __init__(
        self,
        every_n_iterations: int = 50,
        keep: int = 1,
        monitor: str | None = None,
        mode: str = "max",
        folder: str | None = None,
    ) -> None:
        for name, value in (("every_n_iterations", every_n_iterations), ("keep", keep)):
            if value < 1:
                raise ConfigurationError(f"must be at least 1, got {value}", key=f"checkpoint.{name}")
        if mode not in ("max", "min"):
            raise ConfigurationError(f"must be max or min, got {mode!r}", key="checkpoint.mode")
        self.every_n_iterations = every_n_iterations
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.best_score: float | None = None
        self._saved: list[str] = []
        # Optimiser steps and the logger's step at the end of the last iteration.
        self._steps = self._logged = -1
        self._held = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Holds the folder against other runs, and clears what a kill left half written there."""
        folder = self._folder(trainer)
        if stage == "fit" and trainer.is_global_zero:
            lock = FolderLock(folder, "checkpoint.folder", "its checkpoints", RESTART_PATIENCE_S)
            self._held.enter_context(lock)
            clear_unfinished(folder)
            clear_dead(folder.parent.parent.glob("version_*/checkpoints") if self.folder is None else ())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._held.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, self._steps = batch_idx + 1, trainer.global_step
        self._logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        last = done == trainer.num_training_batches or trainer.should_stop  # such as by trainer.max_time
        if done % self.every_n_iterations == 0 or last:
            write_metrics(trainer)  # a resumed run does not log this iteration once more
            self._check_finite(pl_module, done)
            self._save_iteration(trainer, done)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, unless the update was half done, nothing is new, or other ranks may wait elsewhere."""
        together = trainer.world_size == 1 or isinstance(exception, CommonError | StopRequested)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        saved = any(f"iteration-{done:06d}" in path for path in self._saved)
        if together and self._steps == trainer.global_step and done and not saved:
            self._rescue(trainer, pl_module, done)
        if self.last is not None:
            rank_zero_info(f"to go on from there: --ckpt_path {self.last}")
        self._held.close()

    def _rescue(self, trainer: Trainer, pl_module: LightningModule, done: int) -> None:
        """Saves what is behind a run that ends with an error; what fails here must not hide that error."""
        found = _not_finite(pl_module)
        if found is not None:
            rank_zero_info(f"no checkpoint of iteration {done}: {found}")
            return
        self._rewind(trainer)
        try:
            self._save_iteration(trainer, done, keep_former=True)
        except OSError as error:
            rank_zero_info(
                f"no checkpoint of iteration {done}: {error.strerror or error}; what was saved before is whole"
            )

    @staticmethod
    def _check_finite(pl_module: LightningModule, done: int) -> None:
        found = _not_finite(pl_module)
        if found is not None:
            raise DivergenceError(
                f"after iteration {done} the policy's weight {found}: it is not saved, and what was saved before is "
                "whole; go on from there with a lower model.optimizer.lr"
            )

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that was written to its end; None before there is one."""
        links = (Path(saved).parent / "last.ckpt" for saved in reversed(self._saved))
        return next((link for link in links if link.exists()), None)

    def _rewind(self, trainer: Trainer) -> None:
        """Sets Lightning's counters back to the end of the last iteration, where other checkpoints are saved: with what
        was only begun among them, a resumed run would evaluate and log an iteration late."""
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = self._logged
        batches, evaluated = loop.batch_progress, loop.val_loop.batch_progress
        for count in (batches.total, batches.current):
            count.ready = count.started = count.processed
            count.completed = count.processed - 1
        batches.is_last_batch = batches.current.processed >= trainer.num_training_batches
        for count in (evaluated.total, evaluated.current):
            count.ready = count.started = count.processed = count.completed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics and self.best_score is not None:
            return  # an iteration that could not measure it
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ConfigurationError(f"no metric {self.monitor!r} was logged; there are {known}", "checkpoint.monitor")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        better = self.best_score is None or sign * score > sign * self.best_score
        if better and math.isfinite(score) and _not_finite(pl_module) is None:
            self.best_score = score
            if not trainer.sanity_checking:
                self._save(trainer, self._folder(trainer) / "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "saved": self._saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self._saved = list(state_dict["saved"])

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder) if self.folder else run_folder(trainer) / "checkpoints"

    def _save_iteration(self, trainer: Trainer, done: int, keep_former: bool = False) -> None:
        path = self._folder(trainer) / f"iteration-{done:06d}.ckpt"
        # A resumed run writes to a folder of its own, and leaves those that it came from alone.
        own = [saved for saved in self._saved if Path(saved).parent == path.parent and saved != str(path)]
        self._saved = [*own, str(path)]
        kept = len(self._saved) if keep_former else self.keep
        outdated, self._saved = self._saved[:-kept], self._saved[-kept:]
        self._save(trainer, path)
        if trainer.is_global_zero:
            link(path, path.parent / "last.ckpt")
            for old in outdated:
                remove(Path(old))
        trainer.strategy.barrier()  # no rank ends before: launchers then take the others for failed, and kill them
        rank_zero_info(f"checkpoint of iteration {done}: {path}")

    @staticmethod
    def _save(trainer: Trainer, path: Path) -> None:
        fresh = unfinished(path)
        try:
            trainer.save_checkpoint(fresh)
            _list_shards(trainer, fresh)
            if trainer.is_global_zero:
                install(fresh, path)
        finally:
            if trainer.is_global_zero:  # it may have filled the disk
                remove(fresh)
        trainer.strategy.barrier()


def _not_finite(module: "PolicyModule | LightningModule") -> NotFinite | None:
    """Collective."""
    return weights_not_finite(module.policy, module.gather_objects)  # type: ignore[arg-type,union-attr]


def _list_shards(trainer: Trainer, folder: Path) -> None:
    """Collective. Writes down what belongs to a sharded checkpoint; each rank reads its share of the files."""
    trainer.strategy.barrier()
    if not folder.is_dir():
        return
    names = file_names(folder)[trainer.global_rank :: trainer.world_size]
    shares = trainer.lightning_module.gather_objects(list_files(folder, names))
    if trainer.is_global_zero:
        write_list(folder, {name: entry for share in shares for name, entry in share.items()})
