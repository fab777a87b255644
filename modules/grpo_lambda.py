"""GRPO-λ: one ``training_step`` is one RL iteration over the experience that the rollout callback left here.

The order of an iteration stands at the top of :mod:`callbacks.rollouts`; this file holds what that callback asks of the
policy before the update (``plan_updates``, ``evaluate_tokens``) and the update itself: advantages → for each pass, step
and micro-batch log-probs → objective (traces inside) → backward; clip → step.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from app.algorithm.advantages import AdvantageSettings, group_advantages
from app.algorithm.entropy import top_entropy_threshold
from app.algorithm.objective import ObjectiveSettings, normaliser, policy_objective
from app.data.problems import PromptBatch
from app.errors import ConfigurationError, require
from app.policy.checkpoints import is_checkpoint
from app.policy.dropout import has_adapter_dropout, switch_off_dropout
from app.policy.evaluating import evaluation
from app.policy.logprobs import TokenStatistics
from app.policy.lora import WithoutAdapters, has_adapters
from app.policy.models import PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.policy.packing import TokenBatch, split_by_rows, split_by_tokens
from app.policy.packing_probe import PackingProbe, share_packing
from app.policy.probe import TrainingProbe, family, share_findings
from app.policy.shared_prompts import packs_rows, row_statistics, work_of
from app.rollout.metric_sums import MetricSums
from app.rollout.metrics import record_work
from app.rollout.update_plan import UpdatePlan, UpdateSettings, plan_updates
from modules.iteration_metrics import note_metrics
from modules.policy_module import PolicyModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.rollout.experience import Experience


class GRPOLambdaModule(PolicyModule):
    """Owns the policy and the frozen reference, and learns from rollouts by GRPO-λ (arXiv 2510.00194).

    Args:
        policy: where the policy comes from.
        objective: traces, clipping, KL and reduction.
        advantages: their scale, and the paper's clamp.
        optimizer: AdamW, its schedule and the norm clip.
        updates: how often a rollout is learned from.
        micro_batch_size: rows a forward and backward pass; changes memory and speed, never the gradient.
        micro_batch_tokens: instead: tokens a pass, so that short rows are many a pass. Where rows are packed, those
            that are computed: of completions, and of each different prompt once; otherwise rows times the longest one.
        seed: of a newly built policy's weights.
        reference_offload: the frozen reference (β > 0) waits in host memory while it is not needed.
        policy_offload: parameters, gradients and optimiser states wait in host memory (ModelParallelStrategy alone).
    """

    def __init__(
        self,
        policy: PolicySettings,
        objective: ObjectiveSettings = ObjectiveSettings(),  # noqa: B008  frozen: shared safely
        advantages: AdvantageSettings = AdvantageSettings(),  # noqa: B008
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        updates: UpdateSettings = UpdateSettings(),  # noqa: B008
        micro_batch_size: int = 64,
        micro_batch_tokens: int | None = None,
        seed: int = 0,
        reference_offload: bool = False,
        policy_offload: bool = False,
    ) -> None:
        super().__init__(policy, optimizer, seed, policy_offload)
        self.reference_offload = reference_offload
        self.objective = objective
        self.advantages = advantages
        self.updates = updates
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        for name in ("micro_batch_size", "micro_batch_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, "must be at least 1", value, f"model.{name}")
        self.experience: Experience | None = None
        # [B, T] log π_θ − log π_old as each row's last update saw it; NaN on rows that took no part.
        self.last_log_ratio: torch.Tensor | None = None
        # Of the same update: [B] advantages, and [B, T] what ``top_entropy_share`` counts, None for every token.
        self.last_advantages: torch.Tensor | None = None
        self.last_counted: torch.Tensor | None = None
        # Rows of the iteration's optimiser steps whose gradient was not finite.
        self.suspects: list[torch.Tensor] = []
        # In a list, so that torch does not register it: checkpoints must not carry the frozen reference.
        self._reference: list[PreTrainedModel] = []

    def setup(self, stage: str) -> None:
        """Refuses what the number of ranks makes impossible."""
        super().setup(stage)
        prompts = getattr(self.trainer.datamodule, "prompts_per_iteration", 0) // self.trainer.world_size
        if stage == "fit" and prompts % self.updates.mini_batches:
            raise ConfigurationError(
                f"{self.updates.mini_batches} does not divide the {prompts} prompts of a rank: groups stay whole",
                key="model.updates.mini_batches",
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
    def has_frozen_weights(self) -> bool:
        """So is the reference policy, above β = 0."""
        return self.objective.beta > 0 or super().has_frozen_weights

    @property
    def reference(self) -> "PreTrainedModel | None":
        """The frozen initial policy; None at β = 0, where it is never loaded."""
        return self._reference[0] if self._reference else None

    def probe(self) -> None:
        switch_off_dropout(self.policy)
        compared = not has_adapter_dropout(self.policy)
        TrainingProbe(self.tokenizer, self.compute_dtype, self.device, train_mode=compared).check(self.policy)
        if reason := PackingProbe(self.tokenizer, self.compute_dtype, self.device).try_on(self.policy):
            rank_zero_info(f"{family(self.policy)}: every row computes its own prompt, beside padding: {reason}")
        if self.reference is not None:
            share_findings(self.policy, self.reference)
            share_packing(self.policy, self.reference)

    # ── before the update: what the rollout callback asks for ──

    def plan_updates(self, tokens: TokenBatch, rewards: torch.Tensor, loss_mask: torch.Tensor) -> UpdatePlan:
        """How the iteration's rows are trained on. Collective under ``advantages.scale: batch``.

        Without a KL term and an entropy bonus a row without advantage has no gradient, and a row without a token in the
        loss never has one: leaving them out is exact and saves their passes.

        Args:
            tokens: B = P·G rows.
            rewards: [P, G].
            loss_mask: [B, T].
        """
        with_gradient = loss_mask.any(1)
        if not self.objective.counts_every_row:
            with_gradient &= self._advantages(rewards) != 0
        return plan_updates(
            len(rewards), with_gradient, self.updates.mini_batches, partial(self._micro_batches, tokens)
        )

    def longest_rows_a_pass(self, row_tokens: int) -> int:
        """How many rows of ``row_tokens`` tokens, prompt and completion, a micro-batch holds at most."""
        return max(1, self.micro_batch_tokens // row_tokens) if self.micro_batch_tokens else self.micro_batch_size

    def _micro_batches(self, tokens: TokenBatch, rows: torch.Tensor) -> list[torch.Tensor]:
        """``rows`` in parts; those of one prompt share a part, or, where rows are padded, those of alike lengths."""
        if not len(rows):
            return []
        chosen, packed, budget = tokens.select(rows), packs_rows(self.policy), self.micro_batch_tokens
        if budget:
            parts = split_by_tokens(chosen, budget, packed)
        else:
            parts = split_by_rows(chosen, self.micro_batch_size, packed)
        return [rows[part] for part in parts]

    @torch.no_grad()
    def evaluate_tokens(
        self,
        model: "PreTrainedModel",
        tokens: TokenBatch,
        temperature: float,
        with_entropy: bool = False,
        parts: Sequence[torch.Tensor] | None = None,
    ) -> TokenStatistics:
        """Token log-probs [B, T] (and entropies) of ``model`` over ``tokens``, in micro-batches, without gradient.

        Collective for a sharded model.

        Args:
            parts: the rows to evaluate, in micro-batches (others stay 0); null takes all of them.
        """
        parts = self._micro_batches(tokens, torch.arange(len(tokens))) if parts is None else parts
        dtype = torch.promote_types(self.compute_dtype, torch.float32)
        log_probs = torch.zeros(tokens.completion_ids.shape, dtype=dtype, device=self.device)
        entropy = torch.zeros_like(log_probs) if with_entropy else None
        with evaluation(model, self.device):
            own = parts or [torch.zeros(1, dtype=torch.long)]
            for index in range(self.max_over_ranks(len(parts)) if self.sharding.sharded else len(parts)):
                rows = own[index % len(own)]  # a rank with fewer parts keeps in step with the others
                part = tokens.select(rows).to(self.device)
                statistics = row_statistics(model, part, temperature, with_entropy)
                width = part.completion_ids.shape[1]
                log_probs[rows, :width] = statistics.log_probs
                if entropy is not None and statistics.entropy is not None:
                    entropy[rows, :width] = statistics.entropy
        self.wait_for_device()  # its time is logged
        return TokenStatistics(log_probs, entropy)

    # ── the update ──

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        experience = self.experience
        if experience is None or experience.iteration != batch.iteration:
            raise RuntimeError(f"no experience for iteration {batch.iteration}: the rollout callback is missing")
        started, sums = time.perf_counter(), experience.metrics
        advantages, counted = self._advantages(experience.rewards), self._counted(experience)
        self.last_advantages, self.last_counted = advantages, counted
        self.last_log_ratio = torch.full_like(experience.old_log_probs, float("nan"))
        self.suspects = []
        for update in range(self.updates.per_rollout):
            for step in range(self.updates.mini_batches):
                self._update(experience, advantages, counted, step, update + step == 0, sums)
        sums.add("policy/lr", self.advance_schedule())
        self.wait_for_device()
        experience.rollout.seconds["train"] = time.perf_counter() - started
        sums.add("speed/time/train", experience.rollout.seconds["train"])
        note_metrics(self.trainer, sums.reduce(self.gather_objects))

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """[P, G] rewards → [B] advantages; the "batch" whose spread may scale them is that of all ranks."""
        first, count = 0, len(rewards)
        if self.advantages.scale == "batch":
            first = self.trainer.global_rank * count
            rewards = torch.cat(self.gather_objects(rewards.cpu())).to(rewards.device)
        advantages = group_advantages(rewards, self.advantages.scale, self.advantages.clamp_negative)
        return advantages[first : first + count].flatten()

    def _counted(self, experience: "Experience") -> torch.Tensor | None:
        """[B, T] the tokens that the policy loss counts, by their entropy among those of all ranks; None for all."""
        share = self.objective.top_entropy_share
        if share == 1:
            return None
        own = experience.entropy[experience.loss_mask]
        everywhere = torch.cat(self.gather_objects(own.cpu()))
        return experience.entropy >= top_entropy_threshold(everywhere, share).to(own.device)

    def _update(
        self,
        experience: "Experience",
        advantages: torch.Tensor,
        counted: torch.Tensor | None,
        step: int,
        on_policy: bool,
        sums: MetricSums,
    ) -> None:
        """One optimiser step, normalised over all ranks; ``on_policy`` says that the policy is still π_old."""
        rows, micro_batches = experience.plan.steps[step], experience.plan.micro_batches[step]
        total = self.sum_over_ranks(normaliser(experience.loss_mask[rows], self.objective))
        count = self.max_over_ranks(len(micro_batches))
        sums.add("policy/updates/skipped", float(count == 0))
        sums.add("policy/updates/row_share", sum(map(len, micro_batches)) / len(rows), len(rows))
        if count == 0:  # no row of any rank has a gradient: stepping would only replay old momentum
            if on_policy:
                experience.when_evaluated()
            return
        for index in range(count):
            if index < len(micro_batches):
                loss = self._loss(experience, advantages, counted, micro_batches[index], total, on_policy, sums)
            else:  # keeps collective calls in step with ranks that have more rows
                loss = self._evaluate(experience, rows[:1]).log_probs.sum() * 0.0
            # Strategies average gradients over ranks; the normaliser is already global, so the sum is wanted.
            self.accumulate(loss * self.trainer.world_size, last=index + 1 == count)
        if on_policy:
            experience.when_evaluated()
        self.suspects.append(torch.cat([part.cpu() for part in micro_batches]) if micro_batches else rows[:0])
        if self.optimizer_step_clipped(sums):
            self.suspects.pop()

    def _evaluate(
        self, experience: "Experience", rows: torch.Tensor, with_entropy: bool = False, sums: MetricSums | None = None
    ) -> TokenStatistics:
        """[R, W] log-probs of the policy, with gradient, as wide as the longest of ``rows``; entropies for a bonus, or
        where they are asked for. What it took goes to ``sums``."""
        part = experience.tokens.select(rows).to(self.device)
        if sums is not None:
            record_work(sums, work_of(self.policy, part))
        bonus = self.objective.entropy_bonus > 0
        return row_statistics(self.policy, part, experience.temperature, with_entropy, entropy_gradient=bonus)

    def _loss(
        self,
        experience: "Experience",
        advantages: torch.Tensor,
        counted: torch.Tensor | None,
        rows: torch.Tensor,
        total: torch.Tensor,
        on_policy: bool,
        sums: MetricSums,
    ) -> torch.Tensor:
        """The loss over one micro-batch."""
        policy = self._evaluate(experience, rows, with_entropy=on_policy, sums=sums)
        log_probs = policy.log_probs
        rows = rows.to(self.device, non_blocking=True)

        def of_rows(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[rows, : log_probs.shape[1]]

        if on_policy:  # the policy is π_old: the ratio is 1, whatever two evaluations would differ by in rounding
            assert policy.entropy is not None, "was asked for"
            experience.take_old(rows, log_probs.detach(), policy.entropy.detach())
        old = of_rows(experience.old_log_probs)
        loss, metrics = policy_objective(
            log_probs,
            old,
            of_rows(experience.ref_log_probs),
            advantages[rows],
            of_rows(experience.loss_mask),
            self.objective,
            normaliser=total,
            importance_weights=experience.corrected(rows, log_probs.shape[1]),
            entropy=policy.entropy if self.objective.entropy_bonus > 0 else None,
            counted=of_rows(counted),
        )
        self._record(metrics, rows, log_probs.detach() - old, sums)
        return loss

    def _record(
        self, metrics: dict[str, torch.Tensor], rows: torch.Tensor, log_ratio: torch.Tensor, sums: MetricSums
    ) -> None:
        sums.extremes(metrics["ratio_max"], highest="policy/ratio_max")
        means = {_tag(name): mean for name, mean in metrics.items() if name not in ("tokens", "rows", "ratio_max")}
        sums.add_all(means, metrics["tokens"])
        assert self.last_log_ratio is not None
        self.last_log_ratio[rows, : log_ratio.shape[1]] = log_ratio


def _tag(name: str) -> str:
    """The curve of one of the objective's metrics: what peers log too keeps their name, the rest stands together."""
    return name if name == "kl" or name.startswith("clip_ratio/") else f"policy/{name.removeprefix('policy_')}"
