"""The supervised stage that comes before RL: next-token cross-entropy on demonstrations."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info

from app.data.sft import IGNORED
from app.data.shown_prompt import show_example
from app.errors import ConfigurationError
from app.policy.context import rope_switch
from app.policy.logprobs import last_columns, statistics_at
from app.policy.models import PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.policy.probe import TrainingProbe
from app.policy.sharding.wrapping import inner_model
from app.rollout.metric_sums import MetricSums
from modules.iteration_metrics import note_metrics
from modules.policy_module import PolicyModule

if TYPE_CHECKING:
    from app.data.sft import SFTBatch


class SFTModule(PolicyModule):
    """Supervised fine-tuning; the loss is the mean over all completion tokens of the batch on all ranks.

    Args:
        policy: where the policy comes from.
        optimizer: AdamW, its schedule and the norm clip.
        micro_batch_size: rows a forward and backward pass; changes memory and speed, never the gradient.
        seed: of a newly built policy's weights.
        policy_offload: parameters, gradients and optimiser states wait in host memory (ModelParallelStrategy alone).
    """

    def __init__(
        self,
        policy: PolicySettings,
        optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5, schedule="cosine"),  # noqa: B008
        micro_batch_size: int = 64,
        seed: int = 0,
        policy_offload: bool = False,
    ) -> None:
        super().__init__(policy, optimizer, seed, policy_offload)
        self.micro_batch_size = micro_batch_size
        self._example_shown = False

    def probe(self) -> None:
        """Examples are padded on the right, and dropout is part of the training."""
        self._check_lengths()
        probe = TrainingProbe(self.tokenizer, self.compute_dtype, self.device, train_mode=False, layouts=("right",))
        probe.check(self.policy)

    def _check_lengths(self) -> None:
        switch = rope_switch(inner_model(self.policy).config)
        longest = getattr(self.trainer.datamodule, "max_tokens", None)
        if switch is not None and (longest is None or longest > switch):
            raise ConfigurationError(
                f"must be at most {switch}: rotary embeddings of this policy change for all rows of a micro-batch as "
                f"soon as one of them is longer; got {longest}",
                key="data.max_tokens",
            )

    def on_train_batch_start(self, batch: "SFTBatch", batch_idx: int) -> None:
        """Once a process the first example: one that is not what was meant shows before anything is learned from it."""
        if not self._example_shown:
            self._example_shown = True
            prompt, target = (batch.input_ids[0][each].tolist() for each in _parts(batch))
            shown = show_example(prompt, target, self.tokenizer)
            rank_zero_info(f"the first example of step {batch.step + 1}\n{shown}")

    def training_step(self, batch: "SFTBatch", batch_idx: int) -> None:
        sums = MetricSums()
        total = self.sum_over_ranks((batch.labels[:, 1:] >= 0).sum())
        starts = range(0, len(batch.input_ids), self.micro_batch_size)
        for start in starts:
            rows = slice(start, start + self.micro_batch_size)
            loss, right = self._summed_loss(batch, rows)
            tokens = (batch.labels[rows, 1:] >= 0).sum()
            self.accumulate(loss / total * self.trainer.world_size, last=start == starts[-1])
            sums.add("loss", loss / tokens, tokens)
            sums.add("mean_token_accuracy", right / tokens, tokens)
        self.optimizer_step_clipped(sums)
        sums.add("policy/lr", self.advance_schedule())
        note_metrics(self.trainer, sums.reduce(self.gather_objects))

    def _summed_loss(self, batch: "SFTBatch", rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the cross-entropy over the completion tokens of ``rows``, and how many are predicted right.

        The columns from the shortest prompt's end on are evaluated.
        """
        # Nothing predicts a row's first token.
        labels = batch.labels[rows, max(1, min(batch.prompt_lengths[rows])) :]
        inputs = {"input_ids": batch.input_ids[rows, :-1], "attention_mask": batch.attention_mask[rows, :-1]}
        width = labels.shape[1]
        found = statistics_at(
            self.policy,
            lambda values: last_columns(values, width).flatten(0, 1),
            labels.clamp(min=0).flatten(),
            with_best=True,
            use_cache=False,
            logits_to_keep=width,
            **inputs,
        )
        loss = -found.log_probs.masked_fill(labels.flatten() == IGNORED, 0.0).sum()
        assert found.best is not None, "was asked for"
        return loss, (found.best == labels.flatten()).sum()


def _parts(batch: "SFTBatch") -> tuple[torch.Tensor, torch.Tensor]:
    """[S] the first row's columns of the prompt, and those that bear loss."""
    learned = batch.labels[0] != IGNORED
    return batch.attention_mask[0].bool() & ~learned, learned
