"""Rollouts: before each iteration's update, completions are drawn, graded and turned into experience."""

import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from app.data.problems import PromptBatch
from app.engines.engine import RolloutEngine, SamplingSettings
from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.ranks import RolloutRanks
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from app.rewards.correctness import CorrectnessReward
from app.rewards.reward import RewardFunction
from app.rewards.weighted import WeightedRewards
from app.rollout.ahead import RolloutAhead
from app.rollout.collection import RolloutCollector
from app.rollout.dynamic_sampling import DynamicSamplingSettings, replace_tied, tied_groups
from app.rollout.experience import (
    Experience,
    Rollout,
    pad_rollout,
    rollout_from_state,
    rollout_state,
    sampler_log_probs,
)
from app.rollout.metric_sums import MetricSums
from app.rollout.metrics import record_experience
from app.rollout.mismatch import CorrectionSettings, importance_weights
from app.rollout.preflight import check_first_rollout
from app.stopping import STOP

if TYPE_CHECKING:
    from app.policy.packing import TokenBatch
    from modules.grpo_lambda import GRPOLambdaModule

TRUNCATED = ("keep", "mask", "penalise")
log = logging.getLogger(__name__)


class RolloutCallback(Callback):
    """Fills ``module.experience`` before every training batch.

    Args:
        group_size: G, completions a prompt; at least 2.
        engine: what generates; by default transformers with the policy itself.
        sampling: how completions are drawn.
        rewards: the reward functions; by default correctness alone.
        reward_weights: one weight for each of ``rewards``; by default 1 each.
        every_n_iterations: prompts of this many iterations are generated at once, with the weights of the first.
        generate_ahead: the next rollout is generated while this one is learned from, with weights that are one
            update older; for an engine with weights and a process of its own.
        dynamic_sampling: tied groups give way to further prompts; null switches it off.
        truncated: completions cut off by ``max_new_tokens``: "keep" them, "mask" them out of the loss (their
            reward still counts in the group's mean), or "penalise" their reward by ``truncation_penalty``.
        truncation_penalty: taken off the reward of a truncated completion under "penalise": "reward" and its spread
            are logged with it, ``rewards/<name>/mean`` without.
        correction: importance weights against the engine's and the trainer's different log-probs; null for none.
        preflight_limit: largest mean difference of their log-probs on the first rollout, in nats a token, above
            which the run stops and names the likely cause; null checks nothing.
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
        generate_ahead: bool = False,
        dynamic_sampling: DynamicSamplingSettings | None = None,
        truncated: str = "keep",
        truncation_penalty: float = 1.0,
        correction: CorrectionSettings | None = None,
        preflight_limit: float | None = 0.1,
        seed: int = 0,
    ) -> None:
        _check(group_size, sampling, every_n_iterations, truncated, truncation_penalty)
        inner = engine or TransformersEngine()
        if generate_ahead and not getattr(inner, "concurrent", False):
            raise ConfigurationError(
                "needs an engine with weights and a process of its own, such as VLLMEngine with placement: separate",
                key="rollouts.generate_ahead",
            )
        self.engine = GuardedEngine(inner)
        self.rewards = WeightedRewards(rewards or [CorrectnessReward()], reward_weights)
        penalty = truncation_penalty if truncated == "penalise" else 0.0
        self.collector = RolloutCollector(self.engine, self.rewards, group_size, sampling, seed, penalty)
        self._ahead_collector = RolloutCollector(inner, self.rewards, group_size, sampling, seed, penalty)
        self.group_size = group_size
        self.sampling = sampling
        self.every_n_iterations = every_n_iterations
        self.generate_ahead = generate_ahead
        self.dynamic_sampling = dynamic_sampling
        self.truncated = truncated
        self.correction = correction
        self.preflight_limit = preflight_limit
        self._waiting: deque[Rollout] = deque()
        self._ahead = RolloutAhead()
        self._ranks: RolloutRanks | None = None
        self._preflight_ranks: RolloutRanks | None = None
        self._totals = {"tokens/total": 0.0, "completions/total": 0.0}
        self._iteration_started = 0.0
        self._engine_started = False
        self._preflight_done = False
        self._tied_reported = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Two groups: a rollout ahead asks the ranks in a thread of its own, meanwhile the preflight in the main one.
        self._ranks, self._preflight_ranks = RolloutRanks(), RolloutRanks()

    def ready_engine(self, module: LightningModule) -> RolloutEngine:
        """The engine, idle and started, with the policy's current weights."""
        self._take_rollout_ahead()
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
        with STOP.interruptible_alone():
            rollout = self._rollout(trainer, pl_module, batch.iteration)
            pl_module.experience = self._experience(pl_module, rollout)
        if trainer.is_global_zero:
            self._report_tied(rollout)

    def _rollout(self, trainer: Trainer, module: "GRPOLambdaModule", iteration: int) -> Rollout:
        """That of ``iteration``. It goes on waiting until the iteration is done: a run that stops before saves it."""
        self._take_rollout_ahead()
        if not self._waiting:
            self._waiting.extend(self._generate(trainer, module, iteration))
        rollout = self._waiting[0]
        if rollout.batch.iteration != iteration:
            raise RuntimeError(f"rollout of iteration {rollout.batch.iteration} in iteration {iteration}")
        if self.generate_ahead and len(self._waiting) == 1:
            self._start_ahead(trainer, module, iteration)
        return rollout

    def _take_rollout_ahead(self) -> None:
        """Waits for the rollout that is generated ahead, if there is one, unless a signal ends the run meanwhile."""
        if self.generate_ahead:
            self._waiting.extend(STOP.together(lambda: self._ahead.finish(STOP.interruptible)))

    def _generate(self, trainer: Trainer, module: "GRPOLambdaModule", iteration: int) -> list[Rollout]:
        """Rollouts for ``iteration`` and, with a period, for those that follow."""
        synced = self._synchronise(module)
        return self._collect(self.collector, trainer, module, self._batches(trainer, iteration), iteration, synced)

    def _synchronise(self, module: "GRPOLambdaModule") -> float:
        """Seconds that it took to have the policy's weights in the engine."""
        started = time.perf_counter()
        self.ready_engine(module)
        return time.perf_counter() - started

    def _batches(self, trainer: Trainer, iteration: int) -> list[PromptBatch]:
        last = min(iteration + self.every_n_iterations, int(trainer.num_training_batches))
        return [trainer.datamodule.train_batch(index) for index in range(iteration, last)]

    def _collect(
        self,
        collector: RolloutCollector,
        trainer: Trainer,
        module: "GRPOLambdaModule",
        batches: list[PromptBatch],
        weights_iteration: int,
        sync_seconds: float,
    ) -> list[Rollout]:
        rollouts = collector.collect(batches, module.tokenizer, module.end_token_ids)
        if self.dynamic_sampling is not None:
            replace = partial(self._without_tied, collector, trainer, module, self.dynamic_sampling)
            rollouts = [replace(rollout) for rollout in rollouts]
        for rollout in rollouts:
            rollout.weights_iteration = weights_iteration
            rollout.counts["engine/restarts"] = float(self.engine.restarts)
        rollouts[0].seconds["sync"] = sync_seconds
        return rollouts

    def _without_tied(
        self,
        collector: RolloutCollector,
        trainer: Trainer,
        module: "GRPOLambdaModule",
        settings: DynamicSamplingSettings,
        rollout: Rollout,
    ) -> Rollout:
        def further(extra_round: int) -> Rollout:
            batch = trainer.datamodule.spare_batch(rollout.batch.iteration, extra_round)
            return collector.collect([batch], module.tokenizer, module.end_token_ids, extra_round)[0]

        assert self._ranks is not None, "setup comes first"
        return replace_tied(rollout, further, settings, self._ranks.any)

    def _start_ahead(self, trainer: Trainer, module: "GRPOLambdaModule", iteration: int) -> None:
        """Begins the next rollout with the weights that this iteration's update starts from."""
        batches = self._batches(trainer, iteration + 1)
        if not batches:
            return
        synced = self._synchronise(module)

        def again(failure: EngineFailure) -> list[Rollout]:
            """In the main thread and after the update: the weights are those of the rollout's own iteration."""
            self.engine.restart(failure)
            log.warning("The rollout that was generated ahead is drawn again, with weights that are one update newer.")
            return self._collect(self.collector, trainer, module, batches, batches[0].iteration, synced)

        collect = partial(self._collect, self._ahead_collector, trainer, module, batches, iteration, synced)
        self._ahead.start(collect, again)

    @torch.no_grad()
    def _experience(self, module: "GRPOLambdaModule", rollout: Rollout) -> Experience:
        """Pads the rollout and evaluates it under the policy and the reference."""
        started = time.perf_counter()
        tokens = pad_rollout(rollout, module.tokenizer).to(module.device)
        temperature, reference = self.sampling.temperature, module.reference
        rewards, loss_mask = self._treat_truncated(rollout, tokens)
        plan = module.plan_updates(tokens, rewards, loss_mask)
        evaluate = partial(module.evaluate_tokens, tokens=tokens, temperature=temperature, parts=plan.passes)
        old = evaluate(module.policy, with_entropy=True)
        ref = evaluate(reference).log_probs if reference else None
        sampler = sampler_log_probs(rollout, tokens)
        rollout.seconds["log_probs"] = time.perf_counter() - started
        experience = Experience(
            rollout=rollout,
            tokens=tokens,
            loss_mask=loss_mask,
            rewards=rewards,
            old_log_probs=old.log_probs,
            ref_log_probs=ref,
            sampler_log_probs=sampler,
            entropy=old.entropy,
            temperature=temperature,
            metrics=MetricSums(),
            plan=plan,
        )
        self._compare_with_engine(module, experience)
        record_experience(experience)
        return experience

    def _compare_with_engine(self, module: "GRPOLambdaModule", experience: Experience) -> None:
        """Preflight on a process's first rollout from the current weights, importance weights on every rollout."""
        fresh = experience.rollout.weights_iteration == experience.iteration  # an older one was sampled by another π
        if self.preflight_limit is not None and fresh and not self._preflight_done:
            self._preflight_done = True
            assert self._preflight_ranks is not None, "setup comes first"
            check_first_rollout(
                module.policy,
                experience.tokens,
                experience.sampler_log_probs,
                experience.old_log_probs,
                self.sampling,
                self._preflight_ranks,
                self.preflight_limit,
                module.reference,
                pad_rollout(experience.rollout, module.tokenizer, templated=False).to(module.device),
            )
        if self.correction is not None:
            experience.importance_weights = importance_weights(
                experience.sampler_log_probs, experience.old_log_probs, experience.loss_mask, self.correction
            )

    def _treat_truncated(self, rollout: Rollout, tokens: "TokenBatch") -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards [P, G] and loss mask [B, T] under the option ``truncated``; penalties came with the grading."""
        mask = tokens.completion_mask
        rewards = torch.tensor(rollout.rewards, device=mask.device).view(-1, rollout.group_size)
        if self.truncated == "mask":
            cut = torch.tensor([row.finish_reason == "length" for row in rollout.rows], device=mask.device)
            mask = mask & ~cut[:, None]
        return rewards, mask

    def _report_tied(self, rollout: Rollout) -> None:
        """Once a run, in words: metrics alone would let a run that cannot learn look like one that does."""
        if not self._tied_reported and len(tied_groups(rollout)) == len(rollout.completions):
            self._tied_reported = True
            log.warning(
                "iteration %d: the completions of every prompt earned the same reward (mean %.3g), so there is nothing "
                "to learn from and the weights stay as they are. The run goes on; watch frac_reward_zero_std and "
                "updates/skipped.",
                rollout.batch.iteration + 1,
                sum(rollout.rewards) / len(rollout.rewards),
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Logs what was generated on all ranks, the groups that dynamic sampling gave up included:

        - ``tokens/total``, ``completions/total``: by the rollouts of all iterations so far;
        - ``tokens/per_second``: tokens of this iteration's rollout over its ``time/iteration``.
        """
        assert pl_module.experience is not None
        self._waiting.popleft()
        rollout = pl_module.experience.rollout
        counted = pl_module.gather_objects((rollout.generated_tokens, rollout.generated_completions, STOP.received))
        *counts, signals = zip(*counted, strict=True)
        tokens, completions = map(sum, counts)
        STOP.agree(signals)
        self._totals["tokens/total"] += tokens
        self._totals["completions/total"] += completions
        seconds = time.perf_counter() - self._iteration_started
        rates = {"time/iteration": seconds, "tokens/per_second": tokens / seconds}
        pl_module.log_dict(self._totals | rates, rank_zero_only=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: "GRPOLambdaModule", checkpoint: dict[str, Any]) -> None:
        self._waiting.extend(self._ahead.finish())
        waiting = pl_module.gather_objects([rollout_state(rollout) for rollout in self._waiting])
        checkpoint["rollouts"] = {"totals": dict(self._totals), "waiting": waiting}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: "GRPOLambdaModule", checkpoint: dict[str, Any]) -> None:
        state = checkpoint["rollouts"]
        self._totals = dict(state["totals"])
        ranks = state["waiting"]
        if any(ranks) and len(ranks) != trainer.world_size:
            raise ConfigurationError(
                f"the checkpoint holds rollouts that wait for {len(ranks)} ranks, this run has {trainer.world_size}: "
                "resume on as many, or from a checkpoint at which none were waiting",
                key="ckpt_path",
            )
        own = ranks[trainer.global_rank] if any(ranks) else []
        self._waiting = deque(rollout_from_state(rollout) for rollout in own)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.close():
            rank_zero_info(
                "The rollout that was being generated ahead is given up: a resumed run draws it with newer weights."
            )

    def close(self) -> bool:
        """Frees the engine and the graders; safe to call again. True where a rollout was given up in its middle."""
        self.engine.close()
        complete, lost = self._ahead.give_up()
        self._waiting.extend(complete)
        self.rewards.close()
        self._engine_started = False
        return lost


def _check(
    group_size: int, sampling: SamplingSettings, every_n_iterations: int, truncated: str, penalty: float
) -> None:
    rules = {
        "group_size": (group_size >= 2, f"must be at least 2, got {group_size}: an advantage is relative to a group"),
        "sampling.temperature": (sampling.temperature > 0, "must be positive: greedy groups are tied"),
        "every_n_iterations": (every_n_iterations >= 1, f"must be at least 1, got {every_n_iterations}"),
        "truncated": (truncated in TRUNCATED, f"must be one of {', '.join(TRUNCATED)}, got {truncated!r}"),
        "truncation_penalty": (penalty >= 0, f"must be at least 0, got {penalty}"),
    }
    for key, (holds, rule) in rules.items():
        if not holds:
            raise ConfigurationError(rule, key=f"rollouts.{key}")
