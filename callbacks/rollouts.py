"""Rollouts: before each iteration's update, completions are drawn, graded and turned into experience.

One iteration in the order in which it happens:

1. prompts: ``datamodule.train_batch``, a pure function of the iteration;
2. completions: :class:`app.rollout.schedule.RolloutSchedule` hands the weights to the engine and has them drawn;
3. rewards: :class:`app.rollout.collection.RolloutCollector` decodes and grades them;
4. experience: :meth:`RolloutCallback._experience` evaluates them under the reference and, as far as the update's first
   step does not do it in passing, under the policy (π_old);
5. update: ``GRPOLambdaModule.training_step`` learns from ``module.experience``.
"""

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from app.data.problems import PromptBatch
from app.engines.engine import RolloutEngine, SamplingSettings
from app.engines.faults import GuardedEngine
from app.engines.ranks import RolloutRanks
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError, DivergenceError, require
from app.evaluation.numerics import engine_dtype
from app.policy.decoding import forbidden_ids
from app.rewards.correctness import CorrectnessReward
from app.rewards.reward import RewardFunction
from app.rewards.weighted import WeightedRewards
from app.rollout.collection import RolloutCollector, TruncationSettings
from app.rollout.dynamic_sampling import DynamicSamplingSettings, tied_groups
from app.rollout.experience import Experience, Rollout, pad_rollout, sampler_log_probs
from app.rollout.metric_sums import MetricSums
from app.rollout.metrics import record_policy, record_rollout
from app.rollout.mismatch import MismatchSettings
from app.rollout.preflight import check_first_rollout
from app.rollout.schedule import RolloutSchedule, ScheduleSettings
from app.stopping import STOP
from callbacks.finite_log_probs import check_log_probs, keep_suspects
from callbacks.iteration_clock import IterationClock
from modules.iteration_metrics import note_metrics

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule

log = logging.getLogger(__name__)


class RolloutCallback(Callback):
    """Fills ``module.experience`` before every training batch.

    Args:
        group_size: G, completions a prompt; at least 2.
        engine: what generates; by default transformers with the policy itself.
        sampling: how completions are drawn.
        rewards: the reward functions; by default correctness alone.
        reward_weights: one weight for each of ``rewards``; by default 1 each.
        schedule: when rollouts are generated.
        dynamic_sampling: tied groups give way to further prompts; null switches it off.
        truncation: what becomes of completions that ``max_new_tokens`` cut off.
        mismatch: what is done about the engine's and the trainer's different log-probs.
        seed: of sampling; completion i of prompt p in iteration t depends on (seed, t, p, i) alone.
    """

    def __init__(
        self,
        group_size: int = 8,
        engine: RolloutEngine | None = None,
        sampling: SamplingSettings = SamplingSettings(),  # noqa: B008  frozen: shared safely
        rewards: list[RewardFunction] | None = None,
        reward_weights: list[float] | None = None,
        schedule: ScheduleSettings = ScheduleSettings(),  # noqa: B008
        dynamic_sampling: DynamicSamplingSettings | None = None,
        truncation: TruncationSettings = TruncationSettings(),  # noqa: B008
        mismatch: MismatchSettings = MismatchSettings(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        rule = "must be at least 2 (an advantage is relative to a group)"
        require(group_size >= 2, rule, group_size, "rollouts.group_size")
        rule = "must be positive (greedy groups are tied)"
        require(sampling.temperature > 0, rule, sampling.temperature, "rollouts.sampling.temperature")
        self.engine = GuardedEngine(engine or TransformersEngine())
        schedule.check_engine(self.engine.engine)
        self.rewards = WeightedRewards(rewards or [CorrectnessReward()], reward_weights)
        collector = RolloutCollector(self.engine, self.rewards, group_size, sampling, seed, truncation.taken_off)
        self.group_size = group_size
        self.sampling = sampling
        self.schedule = RolloutSchedule(self.engine, collector, schedule, dynamic_sampling)
        self.truncation = truncation
        self.mismatch = mismatch
        self._preflight_ranks: RolloutRanks | None = None
        self._totals = {"speed/tokens/total": 0.0, "completions/total": 0.0}
        self._clock = IterationClock()
        self._waited = 0.0  # seconds that this iteration had to wait for its rollout
        self._preflight_done = False
        self._tied_reported = False
        self._prompt_shown = False

    @property
    def dynamic_sampling(self) -> DynamicSamplingSettings | None:
        """Whether and how tied groups give way to further prompts."""
        return self.schedule.dynamic_sampling

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Two groups: a rollout ahead asks the ranks in a thread of its own, meanwhile the preflight in the main one.
        self.schedule.setup()
        self._preflight_ranks = RolloutRanks()

    def ready_engine(self, module: "GRPOLambdaModule") -> RolloutEngine:
        """The engine, idle and started, with the policy's current weights."""
        return self.schedule.ready_engine(module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.resume()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", batch: PromptBatch, batch_idx: int
    ) -> None:
        """Prompts → completions → rewards → experience."""
        pl_module.check_weights(f"after iteration {batch_idx}" if batch_idx else "before the first iteration")
        self._show_prompt(pl_module, batch)
        pl_module.experience = None  # frees the last iteration's tensors before new ones are made
        with STOP.interruptible_alone():
            iterations = int(trainer.num_training_batches)
            started = time.perf_counter()
            rollout = self.schedule.next(pl_module, trainer.datamodule, batch.iteration, iterations)
            self._waited = time.perf_counter() - started
            pl_module.experience = self._experience(trainer, pl_module, rollout)
        if trainer.is_global_zero:
            self._report_tied(rollout)

    def _show_prompt(self, module: "GRPOLambdaModule", batch: PromptBatch) -> None:
        """Once a process: a prompt that is not what was meant shows before anything is learned from it."""
        if not self._prompt_shown:
            self._prompt_shown = True
            rank_zero_info(f"the first prompt of iteration {batch.iteration + 1}\n{module.show_prompt(batch)}")

    @torch.no_grad()
    def _experience(self, trainer: Trainer, module: "GRPOLambdaModule", rollout: Rollout) -> Experience:
        """Pads the rollout and evaluates it under the reference, and under the policy where the update does not."""
        started = time.perf_counter()
        tokens = pad_rollout(rollout, module.tokenizer).to(module.device)
        temperature, reference = self.sampling.temperature, module.reference
        rewards = torch.tensor(rollout.rewards, device=module.device).view(-1, rollout.group_size)
        loss_mask = self.truncation.loss_mask(tokens.completion_mask, rollout.rows)
        plan = module.plan_updates(tokens, rewards, loss_mask)
        whole = self._preflight_is_due(rollout) or module.objective.top_entropy_share < 1
        evaluate = partial(module.evaluate_tokens, tokens=tokens, temperature=temperature)
        old = evaluate(module.policy, parts=plan.passes if whole else plan.beforehand, with_entropy=True)
        ref = evaluate(reference, parts=plan.passes).log_probs if reference else None
        assert old.entropy is not None, "was asked for"
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
            plan=plan,
            correction=self.mismatch.correction,
            pending=torch.cat(plan.micro_batches[0]) if plan.micro_batches[0] and not whole else torch.empty(0),
        )
        check_log_probs(trainer, module, experience)
        if self._preflight_is_due(rollout):
            self._preflight(module, experience)
        record_rollout(experience.metrics, rollout)
        experience.when_evaluated = partial(self._judge_policy, trainer, module, experience)
        return experience

    def _judge_policy(self, trainer: Trainer, module: "GRPOLambdaModule", experience: Experience) -> None:
        if len(experience.pending):
            check_log_probs(trainer, module, experience)
        record_policy(experience)

    def _preflight_is_due(self, rollout: Rollout) -> bool:
        """On a process's first rollout from the current weights: an older one was sampled by another π."""
        fresh = rollout.weights_iteration == rollout.batch.iteration
        return self.mismatch.preflight_limit is not None and fresh and not self._preflight_done

    def _preflight(self, module: "GRPOLambdaModule", experience: Experience) -> None:
        self._preflight_done = True
        assert self._preflight_ranks is not None, "setup comes first"
        dtypes = (module.compute_dtype, engine_dtype(module, self.engine))
        limit = self.mismatch.limit(dtypes, module.device.type, self.sampling.truncates)
        assert limit is not None, "it is due"
        check_first_rollout(
            module.policy,
            experience.tokens,
            experience.sampler_log_probs,
            experience.old_log_probs,
            self.sampling,
            self._preflight_ranks,
            limit,
            module.reference,
            pad_rollout(experience.rollout, module.tokenizer, templated=False).to(module.device),
            corrected=self.mismatch.correction is not None,
            forbidden=forbidden_ids(self.sampling, module.tokenizer, module.policy),
        )

    def _report_tied(self, rollout: Rollout) -> None:
        """Once a run, in words: metrics alone would let a run that cannot learn look like one that does."""
        if not self._tied_reported and len(tied_groups(rollout)) == len(rollout.completions):
            self._tied_reported = True
            log.warning(
                "iteration %d: the completions of every prompt earned the same reward (mean %.3g), so there is nothing "
                "to learn from and the weights stay as they are. The run goes on; watch frac_reward_zero_std and "
                "policy/updates/skipped.",
                rollout.batch.iteration + 1,
                sum(rollout.rewards) / len(rollout.rewards),
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Logs what was generated on all ranks, the groups that dynamic sampling gave up included:

        - ``speed/tokens/total``, ``completions/total``: by the rollouts of all iterations so far;
        - ``speed/tokens/per_second``: tokens of this iteration's rollout over its ``speed/time/iteration``;
        - ``speed/time/other``: what is left of that without the rollout that was waited for, log-probs and training.

        What callbacks and Lightning do between here and the next iteration counts as the next one's.
        """
        assert pl_module.experience is not None
        keep_suspects(trainer, pl_module)
        self.schedule.done()
        rollout = pl_module.experience.rollout
        counted = pl_module.gather_objects((rollout.generated_tokens, rollout.generated_completions, STOP.received))
        *counts, signals = zip(*counted, strict=True)
        tokens, completions = map(sum, counts)
        STOP.agree(signals)
        self._totals["speed/tokens/total"] += tokens
        self._totals["completions/total"] += completions
        seconds = self._clock.lap()
        other = seconds - self._waited - rollout.seconds["log_probs"] - rollout.seconds["train"]
        rates = {"speed/time/iteration": seconds, "speed/time/other": other}
        rates["speed/tokens/per_second"] = tokens / seconds
        note_metrics(trainer, self._totals | rates)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: "GRPOLambdaModule", checkpoint: dict[str, Any]) -> None:
        waiting = pl_module.gather_objects(self.schedule.state())
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
        self.schedule.restore(ranks[trainer.global_rank] if any(ranks) else [])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: "GRPOLambdaModule", exception: BaseException) -> None:
        if isinstance(exception, DivergenceError):
            keep_suspects(trainer, pl_module)
        if self.close():
            rank_zero_info(
                "The rollout that was being generated ahead is given up: a resumed run draws it with newer weights."
            )

    def close(self) -> bool:
        """Frees the engine and the graders; safe to call again. True where a rollout was given up in its middle."""
        lost = self.schedule.close()
        self.rewards.close()
        return lost
