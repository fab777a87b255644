"""Export of the policy as a Hugging Face folder, which transformers and vLLM load."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from app.data.prompts import PromptSettings
from app.errors import ConfigurationError, DivergenceError
from app.policy.exporting import save_policy
from app.policy.finite import weights_not_finite
from app.policy.lora import has_adapters, save_adapter
from app.policy.prompt_record import write_prompt_record
from app.policy.sharding.gathering import whole_weights
from app.policy.sharding.merging import policy_weights
from app.policy.sharding.wrapping import plain_model
from app.policy.sources import check_replaceable
from app.policy.weights import named_weights
from app.storage.durable import clear_unfinished
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from modules.policy_module import PolicyModule


class HFExport(Callback):
    """Writes the policy, its tokenizer and how it was asked when training ends and, if wished, every few iterations.

    A policy with LoRA adapters is written with them merged into its weights, and beside that the adapters alone, as
    peft reads them, in ``adapter``.

    Args:
        folder: where to; by default ``hf`` in the run's folder. Later exports replace it; a folder with anything
            else in it is refused.
        every_n_iterations: further exports to ``<folder>-iteration-<n>``; null for none.
    """

    def __init__(self, folder: str | None = None, every_n_iterations: int | None = None) -> None:
        if every_n_iterations is not None and every_n_iterations < 1:
            raise ConfigurationError(f"must be at least 1, got {every_n_iterations}", key="export.every_n_iterations")
        if folder is not None:
            check_replaceable(Path(folder), "export.folder")
        self.folder = folder
        self.every_n_iterations = every_n_iterations

    def setup(self, trainer: Trainer, pl_module: "PolicyModule", stage: str) -> None:  # type: ignore[override]
        """Clears what a kill left half written beside the export's place."""
        target = self.target(trainer)
        if stage == "fit" and trainer.is_global_zero:
            clear_unfinished(target.parent, target.name)
            clear_unfinished(target.parent, f"{target.name}-iteration-*")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "PolicyModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if self.every_n_iterations and done % self.every_n_iterations == 0:
            self._export(
                trainer, pl_module, self.target(trainer).with_name(f"{self.target(trainer).name}-iteration-{done}")
            )

    def on_train_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._export(trainer, pl_module, self.target(trainer))

    def target(self, trainer: Trainer) -> Path:
        """The folder that the policy goes to."""
        return Path(self.folder) if self.folder else run_folder(trainer) / "hf"

    def _export(self, trainer: Trainer, module: "PolicyModule", folder: Path) -> None:
        found = weights_not_finite(module.policy, module.gather_objects)
        if found is not None:
            raise DivergenceError(f"the policy is not exported: its weight {found}; go on from an earlier checkpoint")
        merged = policy_weights(module.policy)
        adapters = whole_weights(module.policy) if has_adapters(module.policy) else {}
        if trainer.is_global_zero:
            weights = {name: weight.to("cpu", copy=True) for name, weight in merged}
            _write(module, weights, adapters, folder, trainer.datamodule.prompt)
        else:
            deque(merged, maxlen=0)  # takes part in gathering, keeps nothing
        trainer.strategy.barrier()
        rank_zero_info(f"policy exported to {folder}")


def _write(
    module: "PolicyModule",
    merged: dict[str, torch.Tensor],
    adapters: dict[str, torch.Tensor],
    folder: Path,
    prompt: PromptSettings,
) -> None:
    plain = plain_model(module.policy)
    names = [name for name, _ in named_weights(plain)]  # tied ones once

    def add_rest(fresh: Path) -> None:
        write_prompt_record(fresh, prompt)
        if adapters:
            save_adapter(module.policy, adapters, fresh / "adapter")

    save_policy(
        plain, module.tokenizer, folder, {name: merged[name] for name in names}, add_rest, module.policy_settings
    )
