"""Real Lightning runs of the data modules, with a module that only writes down what it is given."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from app.data import synthetic
from app.data.problems import PromptBatch
from app.data.sft import SFTBatch
from callbacks.rollouts import RolloutCallback


class Recorder(pl.LightningModule):
    """Optimises by hand, several steps a batch, as the RL module does; stops at iteration ``dies_at`` if given."""

    def __init__(self, dies_at: int | None = None, tokenizer: Any = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.tokenizer = tokenizer or synthetic.build_tokenizer()
        self.dies_at = dies_at
        self.seen: list[tuple[int, Any]] = []
        self.validated: list[tuple[int, int, PromptBatch]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append((batch_idx, content(batch)))
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.manual_backward(self.layer(torch.ones(1, 1, dtype=self.layer.weight.dtype)).sum())
            optimizer.step()  # type: ignore[union-attr]

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert isinstance(batch, PromptBatch)
        self.validated.append((dataloader_idx, batch_idx, batch))


def content(batch: Any) -> Any:
    """What is compared: iteration and ids."""
    if isinstance(batch, SFTBatch):
        return batch.step, batch.input_ids.tolist(), batch.labels.tolist(), batch.attention_mask.tolist()
    assert isinstance(batch, PromptBatch)
    return batch.iteration, batch.first_index, [problem.problem for problem in batch.problems], batch.prompt_ids


class SaveAt(pl.Callback):
    """Saves a checkpoint when iteration ``iteration`` is over, or at the hook ``at``."""

    def __init__(self, path: Path, iteration: int, at: str = "train_batch_end") -> None:
        self.path, self.iteration, self.at = path, iteration, at

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._save(trainer, "train_batch_end", batch_idx)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._save(trainer, "validation_end", len(module.seen) - 1)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._save(trainer, "train_end", self.iteration)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._save(trainer, "exception", self.iteration)

    def _save(self, trainer: Any, at: str, iteration: int) -> None:
        if (at, iteration) == (self.at, self.iteration):
            trainer.save_checkpoint(self.path)


class RewardsAlone(RolloutCallback):
    """The rewards of a run whose module learns from nothing that is rolled out."""

    def on_train_batch_start(self, *arguments: Any, **named: Any) -> None: ...

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None: ...


def trainer(callbacks: list[pl.Callback] | None = None, **changes: Any) -> pl.Trainer:
    """A quiet trainer on the CPU for one epoch, which validates every second iteration."""
    arguments: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 2,
        "callbacks": callbacks,
    }
    return pl.Trainer(**{**arguments, **changes})
