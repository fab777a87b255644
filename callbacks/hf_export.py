"""Export of the policy as a Hugging Face folder, which transformers and vLLM load."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from app.errors import ConfigurationError
from callbacks.run_folder import run_folder


class HFExport(Callback):
    """Writes the policy and its tokenizer when training ends and, if wished, every few iterations.

    Args:
        folder: where to; by default ``hf`` in the run's folder. Later exports replace it.
        every_n_iterations: further exports to ``<folder>-iteration-<n>``; null for none.
    """

    def __init__(self, folder: str | None = None, every_n_iterations: int | None = None) -> None:
        if every_n_iterations is not None and every_n_iterations < 1:
            raise ConfigurationError(f"must be at least 1, got {every_n_iterations}", key="export.every_n_iterations")
        self.folder = folder
        self.every_n_iterations = every_n_iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if self.every_n_iterations and done % self.every_n_iterations == 0:
            self._export(trainer, pl_module, self._target(trainer).with_name(f"{self._target(trainer).name}-iteration-{done}"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer, pl_module, self._target(trainer))

    def _target(self, trainer: Trainer) -> Path:
        return Path(self.folder) if self.folder else run_folder(trainer) / "hf"

    def _export(self, trainer: Trainer, module: Any, folder: Path) -> None:
        from app.policy.models import save_policy

        if trainer.is_global_zero:
            save_policy(module.policy, module.tokenizer, folder)
        trainer.strategy.barrier()
        rank_zero_info(f"policy exported to {folder}")
