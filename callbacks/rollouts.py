"""Rollouts: before each iteration's update, completions are drawn, graded and turned into experience."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from app.rewards.functions import CorrectnessReward, RewardFunction, WeightedRewards
from app.rollout.transformers_engine import TransformersEngine
from lightning import Callback, LightningModule, Trainer

from app.data.problems import PromptBatch
from app.errors import ConfigurationError
from app.rollout.collection import RolloutCollector
from app.rollout.engine import RolloutEngine, SamplingSettings
from app.rollout.experience import (
    Experience,
    Rollout,
    pad_rollout,
    rollout_from_state,
    rollout_state,
    sampler_log_probs,
)
from app.rollout.metrics import MetricSums, record_experience

if TYPE_CHECKING:
    from app.policy.packing import TokenBatch
    from modules.grpo_lambda import GRPOLambdaModule

TRUNCATED = ("keep", "mask", "penalise")


class RolloutCallback(Callback):
    """Fills ``module.experience`` before every training batch.

    Args:
        group_size: G, completions a prompt; at least 2.
        engine: what generates; by default transformers with the policy itself.
        sampling: how completions are drawn.
        rewards: the reward functions; by default correctness alone.
        reward_weights: one weight for each of ``rewards``; by default 1 each.
        every_n_iterations: prompts of this many iterations are generated at once, with the weights of the first.
        truncated: completions cut off by ``max_new_tokens``: "keep" them, "mask" them out of the loss (their
            reward still counts in the group's mean), or "penalise" their reward by ``truncation_penalty``.
        truncation_penalty: taken off the reward of a truncated completion under "penalise".
        seed: of sampling; completion i of prompt p in iteration t depends on (seed, t, p, i) alone.
    """

    def __init__(
        self,
        group_size: int = 8,
        engine: RolloutEngine | None = None,
        sampling: SamplingSettings = SamplingSettings(),  # noqa: B008  frozen: shared safely
        rewards: list[RewardFunction] | None = None,
        reward_weights: list[float] | None = None,
        every_n_iterations: int = 1,
        truncated: str = "keep",
        truncation_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        _check(group_size, sampling, every_n_iterations, truncated, truncation_penalty)
        self.engine = engine or TransformersEngine()
        self.rewards = WeightedRewards(rewards or [CorrectnessReward()], reward_weights)
        self.collector = RolloutCollector(self.engine, self.rewards, group_size, sampling, seed)
        self.group_size = group_size
        self.sampling = sampling
        self.every_n_iterations = every_n_iterations
        self.truncated = truncated
        self.truncation_penalty = truncation_penalty
        self._waiting: deque[Rollout] = deque()
        self._totals = {"tokens/total": 0.0, "completions/total": 0.0}
        self._iteration_started = 0.0
        self._engine_started = False

    def ready_engine(self, module: LightningModule) -> RolloutEngine:
        """The engine, started if it was not, with the policy's current weights."""
        if not self._engine_started:
            self.engine.start(module)
            self._engine_started = True
        self.engine.sync(module)
        return self.engine

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", batch: PromptBatch, batch_idx: int
    ) -> None:
        self._iteration_started = time.perf_counter()
        pl_module.experience = None  # frees the last iteration's tensors before new ones are made
        if not self._waiting:
            self._waiting.extend(self._generate(trainer, pl_module, batch))
        rollout = self._waiting.popleft()
        if rollout.batch.iteration != batch.iteration:
            raise RuntimeError(f"rollout of iteration {rollout.batch.iteration} in iteration {batch.iteration}")
        pl_module.experience = self._experience(pl_module, rollout)

    def _generate(self, trainer: Trainer, module: "GRPOLambdaModule", batch: PromptBatch) -> list[Rollout]:
        """Rollouts for this iteration and, with a period, for those that follow."""
        started = time.perf_counter()
        self.ready_engine(module)
        synced = time.perf_counter() - started
        last = min(batch.iteration + self.every_n_iterations, int(trainer.num_training_batches))
        ahead = range(batch.iteration + 1, last)
        batches = [batch, *(trainer.datamodule.train_batch(iteration) for iteration in ahead)]
        rollouts = self.collector.collect(batches, module.tokenizer, module.end_token_ids)
        rollouts[0].seconds["sync"] = synced
        return rollouts

    @torch.no_grad()
    def _experience(self, module: "GRPOLambdaModule", rollout: Rollout) -> Experience:
        """Pads the rollout and evaluates it under the policy and the reference."""
        started = time.perf_counter()
        tokens = pad_rollout(rollout, module.tokenizer).to(module.device)
        temperature, reference = self.sampling.temperature, module.reference
        old = module.evaluate_tokens(module.policy, tokens, temperature, with_entropy=True)
        ref = module.evaluate_tokens(reference, tokens, temperature).log_probs if reference else None
        rewards, loss_mask = self._treat_truncated(rollout, tokens)
        rollout.seconds["log_probs"] = time.perf_counter() - started
        experience = Experience(
            rollout=rollout,
            tokens=tokens,
            loss_mask=loss_mask,
            rewards=rewards,
            old_log_probs=old.log_probs,
            ref_log_probs=ref,
            sampler_log_probs=sampler_log_probs(rollout, tokens),
            entropy=old.entropy,
            temperature=temperature,
            metrics=MetricSums(),
        )
        record_experience(experience)
        return experience

    def _treat_truncated(self, rollout: Rollout, tokens: "TokenBatch") -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards [P, G] and loss mask [B, T] under the option ``truncated``."""
        device = tokens.completion_mask.device
        cut = torch.tensor([row.finish_reason == "length" for row in rollout.rows], device=device)
        rewards = torch.tensor(rollout.rewards, device=device)
        mask = tokens.completion_mask
        if self.truncated == "penalise":
            rewards = rewards - self.truncation_penalty * cut
        elif self.truncated == "mask":
            mask = mask * ~cut[:, None]
        return rewards.view(-1, rollout.group_size), mask

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: "GRPOLambdaModule",
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        assert pl_module.experience is not None
        rows = pl_module.experience.rollout.rows
        counted = pl_module.gather_objects((sum(len(row.token_ids) for row in rows), len(rows)))
        tokens, completions = (sum(column) for column in zip(*counted, strict=True))
        self._totals["tokens/total"] += tokens
        self._totals["completions/total"] += completions
        seconds = time.perf_counter() - self._iteration_started
        rates = {"time/iteration": seconds, "tokens/per_second": tokens / seconds}
        pl_module.log_dict(self._totals | rates, rank_zero_only=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: "GRPOLambdaModule", checkpoint: dict[str, Any]) -> None:
        waiting = pl_module.gather_objects([rollout_state(rollout) for rollout in self._waiting])
        checkpoint["rollouts"] = {"totals": dict(self._totals), "waiting": waiting}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: "GRPOLambdaModule", checkpoint: dict[str, Any]) -> None:
        state = checkpoint["rollouts"]
        self._totals = dict(state["totals"])
        ranks = state["waiting"]
        if any(ranks) and len(ranks) != trainer.world_size:
            raise ConfigurationError(
                f"the checkpoint holds rollouts that wait for {len(ranks)} ranks, this run has {trainer.world_size}; "
                f"resume on as many, or from a multiple of every_n_iterations={self.every_n_iterations}",
                key="ckpt_path",
            )
        self._waiting = deque(rollout_from_state(rollout) for rollout in ranks[trainer.global_rank] if any(ranks))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine and the graders; safe to call again."""
        self.engine.close()
        self.rewards.close()
        self._engine_started = False


def _check(
    group_size: int, sampling: SamplingSettings, every_n_iterations: int, truncated: str, penalty: float
) -> None:
    rules = {
        "group_size": (
            group_size >= 2,
            f"must be at least 2, got {group_size}: an advantage is relative to a group",
        ),
        "sampling.temperature": (sampling.temperature > 0, "must be positive: greedy groups are tied"),
        "every_n_iterations": (every_n_iterations >= 1, f"must be at least 1, got {every_n_iterations}"),
        "truncated": (truncated in TRUNCATED, f"must be one of {', '.join(TRUNCATED)}, got {truncated!r}"),
        "truncation_penalty": (penalty >= 0, f"must be at least 0, got {penalty}"),
    }
    for key, (holds, rule) in rules.items():
        if not holds:
            raise ConfigurationError(rule, key=f"rollouts.{key}")
