"""Checkpoints by iteration: Lightning's own counts optimiser steps, of which an iteration may take several."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from app.engines.faults import EngineFailure
from app.errors import ConfigurationError, DivergenceError
from app.stopping import StopRequested
from callbacks.run_folder import run_folder


class IterationCheckpoint(Checkpoint):
    """Keeps ``iteration-<n>.ckpt``, ``last.ckpt`` (a link to the newest) and ``best.ckpt``.

    A checkpoint is written under another name and renamed, so that a kill leaves the former one whole. A run that
    an error or a signal ends between two updates saves the iterations behind it first.

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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, self._steps = batch_idx + 1, trainer.global_step
        self._logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        last = done == trainer.num_training_batches or trainer.should_stop  # such as by trainer.max_time
        if done % self.every_n_iterations == 0 or last:
            self._save_iteration(trainer, done)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, unless the update was half done, nothing is new, or other ranks may wait elsewhere."""
        common = DivergenceError | EngineFailure | StopRequested  # of all ranks
        together = trainer.world_size == 1 or isinstance(exception, common)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        saved = any(f"iteration-{done:06d}" in path for path in self._saved)
        if together and self._steps == trainer.global_step and done and not saved:
            self._rewind(trainer)
            self._save_iteration(trainer, done)
        if self.last is not None:
            rank_zero_info(f"to go on from there: --ckpt_path {self.last}")

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
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ConfigurationError(f"no metric {self.monitor!r} was logged; there are {known}", "checkpoint.monitor")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        if self.best_score is None or sign * score > sign * self.best_score:
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

    def _save_iteration(self, trainer: Trainer, done: int) -> None:
        path = self._folder(trainer) / f"iteration-{done:06d}.ckpt"
        # A resumed run writes to a folder of its own, and leaves those that it came from alone.
        own = [saved for saved in self._saved if Path(saved).parent == path.parent and saved != str(path)]
        self._saved = [*own, str(path)]
        outdated, self._saved = self._saved[: -self.keep], self._saved[-self.keep :]
        self._save(trainer, path)
        if trainer.is_global_zero:
            _link(path, path.parent / "last.ckpt")
            for old in outdated:
                _remove(Path(old))
        trainer.strategy.barrier()  # no rank ends before: launchers then take the others for failed, and kill them
        rank_zero_info(f"checkpoint of iteration {done}: {path}")

    @staticmethod
    def _save(trainer: Trainer, path: Path) -> None:
        unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                _remove(path)
                unfinished.rename(path)
        finally:
            if trainer.is_global_zero:  # it may have filled the disk
                _remove(unfinished)
        trainer.strategy.barrier()


def _link(target: Path, link: Path) -> None:
    """Points ``link`` at ``target`` in one step, so that there is a last checkpoint at any time."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    os.replace(fresh, link)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
