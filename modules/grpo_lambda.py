"""GRPO-λ: one ``training_step`` is one RL iteration over the experience that the rollout callback left here."""

import time
from typing import TYPE_CHECKING, Any

import torch

from app.algorithm.advantages import check_advantage_settings, group_advantages
from app.algorithm.objective import ObjectiveSettings, normaliser, policy_objective
from app.data.problems import PromptBatch
from app.errors import ConfigurationError
from app.policy.checkpoints import is_checkpoint
from app.policy.logprobs import TokenStatistics, token_log_probs
from app.policy.lora import WithoutAdapters, has_adapters
from app.policy.models import PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.policy.packing import TokenBatch, split_by_rows
from app.policy.sharding import evaluation
from app.rollout.metric_sums import MetricSums
from modules.policy_module import PolicyModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.rollout.experience import Experience


class GRPOLambdaModule(PolicyModule):
    """Owns the policy and the frozen reference, and learns from rollouts by GRPO-λ (arXiv 2510.00194).

    Args:
        policy: where the policy comes from.
        objective: traces, clipping, KL and reduction.
        optimizer: AdamW, its schedule and the norm clip.
        advantage_scale: "std", "batch" or "none": what centred rewards are divided by.
        clamp_negative: advantages below minus this are raised to it (the paper: 0.1); null switches it off.
        updates_per_rollout: μ, passes over a rollout.
        mini_batches: optimiser steps a pass; groups stay whole, so it must divide the prompts of a rank.
        micro_batch_size: rows a forward and backward pass; changes memory and speed, never the gradient.
        seed: of a newly built policy's weights.
        reference_offload: the frozen reference (β > 0) waits in host memory while it is not needed.
        policy_offload: parameters, gradients and optimiser states wait in host memory (ModelParallelStrategy alone).
    """

    def __init__(
        self,
        policy: PolicySettings,
        objective: ObjectiveSettings = ObjectiveSettings(),  # noqa: B008  frozen: shared safely
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        advantage_scale: str = "std",
        clamp_negative: float | None = 0.1,
        updates_per_rollout: int = 1,
        mini_batches: int = 1,
        micro_batch_size: int = 64,
        seed: int = 0,
        reference_offload: bool = False,
        policy_offload: bool = False,
    ) -> None:
        super().__init__(policy, optimizer, seed, policy_offload)
        self.reference_offload = reference_offload
        self.objective = objective
        self.advantage_scale = advantage_scale
        self.clamp_negative = clamp_negative
        self.updates_per_rollout = updates_per_rollout
        self.mini_batches = mini_batches
        self.micro_batch_size = micro_batch_size
        for name in ("updates_per_rollout", "mini_batches", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"must be at least 1, got {getattr(self, name)}", key=f"model.{name}")
        check_advantage_settings(advantage_scale, clamp_negative)
        self.experience: Experience | None = None
        # [B, T] log π_θ − log π_old as each row's last update saw it; NaN on rows that took no part.
        self.last_log_ratio: torch.Tensor | None = None
        # In a list, so that torch does not register it: checkpoints must not carry the frozen reference.
        self._reference: list[PreTrainedModel] = []

    def setup(self, stage: str) -> None:
        """Refuses what the number of ranks makes impossible."""
        super().setup(stage)
        prompts = getattr(self.trainer.datamodule, "prompts_per_iteration", 0) // self.trainer.world_size
        if stage == "fit" and prompts % self.mini_batches:
            raise ConfigurationError(
                f"{self.mini_batches} does not divide the {prompts} prompts of a rank: groups stay whole",
                key="model.mini_batches",
            )

    def configure_model(self) -> None:
        super().configure_model()
        if self.objective.beta > 0 and not self._reference:
            self._reference.append(self._load_reference())

    def _load_reference(self) -> Any:
        if has_adapters(self.policy) and not is_checkpoint(self.policy_settings.path):  # they start as zero
            return WithoutAdapters(self.policy)
        return self.sharding.load_reference(self.policy_settings, self.seed, self.reference_offload)

    @property
    def reference(self) -> "PreTrainedModel | None":
        """The frozen initial policy; None at β = 0, where it is never loaded."""
        return self._reference[0] if self._reference else None

    @torch.no_grad()
    def evaluate_tokens(
        self, model: "PreTrainedModel", tokens: TokenBatch, temperature: float, with_entropy: bool = False
    ) -> TokenStatistics:
        """Token log-probs [B, T] (and entropies) of ``model`` over ``tokens``, in micro-batches, without gradient."""
        log_probs = torch.zeros(tokens.completion_ids.shape, dtype=torch.float32, device=self.device)
        entropy = torch.zeros_like(log_probs) if with_entropy else None
        with evaluation(model, self.device):
            for rows in self._micro_batches(tokens, torch.arange(len(tokens))):
                part = tokens.select(rows).to(self.device)
                statistics = token_log_probs(model, part, temperature, with_entropy)
                width = part.completion_ids.shape[1]
                log_probs[rows, :width] = statistics.log_probs
                if entropy is not None and statistics.entropy is not None:
                    entropy[rows, :width] = statistics.entropy
        self.wait_for_device()  # its time is logged
        return TokenStatistics(log_probs, entropy)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        experience = self.experience
        if experience is None or experience.iteration != batch.iteration:
            raise RuntimeError(f"no experience for iteration {batch.iteration}: the rollout callback is missing")
        started, sums = time.perf_counter(), experience.metrics
        advantages = self._token_advantages(experience)
        self.last_log_ratio = torch.full_like(experience.old_log_probs, float("nan"))
        for _ in range(self.updates_per_rollout):
            for rows in self._mini_batch_rows(experience.rewards.shape):
                self._update(experience, advantages, rows, sums)
        sums.add("lr", self.advance_schedule())
        self.wait_for_device()
        sums.add("time/train", time.perf_counter() - started)
        self.log_dict(sums.reduce(self.gather_objects), rank_zero_only=True)

    def _token_advantages(self, experience: "Experience") -> torch.Tensor:
        """[B], or [B, T] where importance weights correct for the engine: they are constants, as A is."""
        rewards = experience.rewards
        first = self.trainer.global_rank * len(rewards) if self.advantage_scale == "batch" else 0
        if self.advantage_scale == "batch":  # the batch is that of all ranks
            rewards = torch.cat(self.gather_objects(rewards.cpu())).to(rewards.device)
        advantages = group_advantages(rewards, self.advantage_scale, self.clamp_negative)
        advantages = advantages[first : first + len(experience.rewards)].flatten()
        if experience.importance_weights is None:
            return advantages
        return advantages[:, None] * experience.importance_weights

    def _mini_batch_rows(self, shape: torch.Size) -> list[torch.Tensor]:
        """Rows of each mini-batch: every ``mini_batches``-th group, so that splitting a batch of prompts over
        ranks gives the same optimiser steps as one process does."""
        prompts, group = shape
        rows = torch.arange(prompts * group).view(prompts, group)
        return [rows[start :: self.mini_batches].flatten() for start in range(self.mini_batches)]

    def _micro_batches(self, tokens: TokenBatch, rows: torch.Tensor) -> list[torch.Tensor]:
        """``rows`` in parts of ``micro_batch_size``; alike lengths share a part, which saves padding."""
        if not len(rows):
            return []
        return [rows[part] for part in split_by_rows(tokens.select(rows), self.micro_batch_size)]

    def _update(self, experience: "Experience", advantages: torch.Tensor, rows: torch.Tensor, sums: MetricSums) -> None:
        """One optimiser step over ``rows``, normalised over all ranks."""
        total = self.sum_over_ranks(normaliser(experience.loss_mask[rows], self.objective))
        micro_batches = self._micro_batches(experience.tokens, self._rows_with_gradient(advantages, rows))
        count = self.max_over_ranks(len(micro_batches))
        sums.add("updates/skipped", float(count == 0))
        if count == 0:  # every group of every rank is tied: stepping would only replay old momentum
            return
        for index in range(count):
            idle = index >= len(micro_batches)
            part = rows[:1] if idle else micro_batches[index]
            loss = self._loss(experience, advantages, part, total, idle, sums)
            # Strategies average gradients over ranks; the normaliser is already global, so the sum is wanted.
            self.accumulate(loss * self.trainer.world_size, last=index + 1 == count)
        self.optimizer_step_clipped(sums)

    def _rows_with_gradient(self, advantages: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """At β = 0 a row without advantage has no gradient; leaving it out is exact and saves its passes."""
        if self.objective.beta > 0:
            return rows
        return rows[advantages.view(len(advantages), -1)[rows].abs().sum(1).cpu() > 0]

    def _loss(
        self,
        experience: "Experience",
        advantages: torch.Tensor,
        rows: torch.Tensor,
        total: torch.Tensor,
        idle: bool,
        sums: MetricSums,
    ) -> torch.Tensor:
        """The loss over one micro-batch. An ``idle`` one keeps collective calls in step with ranks that have more
        rows, and counts for nothing."""
        tokens = experience.tokens.select(rows).to(self.device)
        width = tokens.completion_ids.shape[1]
        mask = experience.loss_mask[rows, :width]
        log_probs = token_log_probs(self.policy, tokens, experience.temperature).log_probs
        if idle:
            return log_probs.sum() * 0.0
        old = experience.old_log_probs[rows, :width]
        reference = None if experience.ref_log_probs is None else experience.ref_log_probs[rows, :width]
        row_advantages = advantages[rows] if advantages.dim() == 1 else advantages[rows, :width]
        loss, metrics = policy_objective(
            log_probs, old, reference, row_advantages, mask, self.objective, normaliser=total
        )
        self._record(metrics, rows, width, log_probs.detach() - old, sums)
        return loss

    def _record(
        self,
        metrics: dict[str, torch.Tensor],
        rows: torch.Tensor,
        width: int,
        log_ratio: torch.Tensor,
        sums: MetricSums,
    ) -> None:
        sums.extremes(metrics["ratio_max"], highest="ratio_max")
        means = {name: mean for name, mean in metrics.items() if name not in ("tokens", "rows", "ratio_max")}
        sums.add_all(means, metrics["tokens"])
        assert self.last_log_ratio is not None
        self.last_log_ratio[rows, :width] = log_ratio
