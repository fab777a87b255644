"""What both stages share: a LightningModule that owns the policy, its tokenizer and its optimiser."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule

from app.policy.models import PolicySettings
from app.policy.optimizers import OptimizerSettings, build_optimizer, lr_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PolicyModule(LightningModule):
    """Owns the policy. Weights are loaded in ``configure_model``, long after the configuration was checked.

    One Lightning batch is one iteration; optimisation is manual, for an iteration may take several steps.
    """

    policy: "PreTrainedModel"

    def __init__(self, policy: PolicySettings, optimizer: OptimizerSettings, seed: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_settings = policy
        self.optimizer_settings = optimizer
        self.seed = seed
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Loaded at its first use: the data module needs it before the weights are there."""
        if self._tokenizer is None:
            from app.policy.models import load_tokenizer

            self._tokenizer = load_tokenizer(self.policy_settings)
        return self._tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        from app.policy.models import end_token_ids

        return end_token_ids(self.tokenizer, self.policy)

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            from app.policy.models import load_policy

            self.policy = load_policy(self.policy_settings, self.seed)

    def configure_optimizers(self) -> dict[str, Any]:
        settings, trainer = self.optimizer_settings, self.trainer
        optimizer = build_optimizer(self.policy.parameters(), settings)
        # The number of batches is known after the data loaders are, which Lightning makes after the optimisers.
        factor = lambda iteration: lr_factor(settings, iteration, trainer.num_training_batches)  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step_clipped(self) -> torch.Tensor:
        """Clips the gradient's global norm, steps and clears; returns the norm before clipping."""
        optimizer = self.optimizers()
        limit = self.optimizer_settings.max_grad_norm
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, float("inf") if limit is None else limit)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def advance_schedule(self) -> float:
        """Ends an iteration: steps the schedule and returns the learning rate that the iteration ran at."""
        schedule = self.lr_schedulers()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        return lr

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of ``value`` over all ranks, on each of them."""
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")

    def max_over_ranks(self, value: int) -> int:
        """The largest ``value`` on any rank."""
        if self.trainer.world_size == 1:
            return value
        return int(self.all_gather(torch.tensor(value, device=self.device)).max())

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, in the order of ranks."""
        if self.trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The work is done by :class:`callbacks.BenchmarkEvaluation`, which sees the same batches."""

    def on_train_start(self) -> None:
        """transformers loads models in eval mode; activation checkpointing acts in train mode alone."""
        self.policy.train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy_settings"] = asdict(self.policy_settings)
