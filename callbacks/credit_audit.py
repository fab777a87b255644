"""The credit audit during ``fit`` and under ``validate``: what tokens were worth, and what each variant gives them."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from app.algorithm.advantages import AdvantageSettings
from app.algorithm.objective import ObjectiveSettings
from app.credit_audit.audit import AuditResult, CreditRules, PreparedAudit, audit_gradients, conclude, prepare
from app.credit_audit.drawing import AuditDraw, AuditedProblem
from app.credit_audit.figure import audit_figure
from app.credit_audit.gradients import (
    AUDITED,
    LARGEST_BYTES,
    GradientAgreement,
    compare_gradients,
    gradient_bytes,
    products,
)
from app.credit_audit.plan import AuditPlan
from app.credit_audit.report import audit_metrics, format_audit, write_audit
from app.data.problems import PromptBatch
from app.engines.engine import RolloutEngine, SamplingSettings
from app.engines.ranks import RolloutRanks
from app.errors import ConfigurationError, require, require_choice
from app.policy.evaluating import evaluation
from app.rewards.correctness import CorrectnessReward
from app.rewards.weighted import WeightedRewards
from app.rollout.collection import TruncationSettings
from app.seeds import derive_seed
from app.stopping import STOP
from app.storage.durable import write_whole
from callbacks.benchmark_evaluation import BenchmarkEvaluation
from callbacks.evaluation_timing import iterations_done
from callbacks.rollouts import RolloutCallback
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from modules.policy_module import PolicyModule


class CreditAudit(Callback):
    """Estimates what the tokens of sampled completions were really worth, by fresh continuations of their prefixes, and
    holds the credit against it that GRPO and each λ variant hand out.

    Under ``fit`` before the first iteration, every ``every_n_iterations`` and at the end, on training problems:
    statistics go to the loggers under ``audit/``, all else to ``audit/iteration-<n>.json`` and ``.png`` in the run's
    folder. Under ``validate`` on a benchmark's problems: a section of the printed table, ``credit_audit.json`` and
    ``credit_audit.png`` in the evaluation's folder. Training is not changed by it.

    Args:
        every_n_iterations: how often under ``fit``.
        problems: audited each time, on all ranks together; at least 2.
        completions: sampled of each problem; the group that advantages are relative to.
        cut_points: prefixes whose value is estimated, at most, in a completion.
        continuations: fresh completions of each prefix.
        sampling: the distribution that values are expectations over; by default the rollouts', else temperature 1.
        gradients: also compare whole gradients: for a small policy on one process.
        benchmark: under ``validate``, whose problems; by default the first one's.
        seed: of sampling; what is drawn for a prefix depends on (seed, iteration, problem, prefix) alone.
    """

    def __init__(
        self,
        every_n_iterations: int = 10,
        problems: int = 16,
        completions: int = 8,
        cut_points: int = 8,
        continuations: int = 16,
        sampling: SamplingSettings | None = None,
        gradients: bool = False,
        benchmark: str | None = None,
        seed: int = 0,
    ) -> None:
        require(every_n_iterations >= 1, "must be at least 1", every_n_iterations, "audit.every_n_iterations")
        self.plan = AuditPlan(problems, completions, cut_points, continuations)
        if sampling is not None:
            rule = "must be positive (a greedy continuation says nothing of the others)"
            require(sampling.temperature > 0, rule, sampling.temperature, "audit.sampling.temperature")
        self.every_n_iterations = every_n_iterations
        self.sampling = sampling
        self.gradients = gradients
        self.benchmark = benchmark
        self.seed = seed
        self._ranks: RolloutRanks | None = None
        self._trained = False  # whether this process has begun an iteration

    # ── before anything is loaded ──

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be audited, and says what it will cost."""
        self._ranks = RolloutRanks()
        ranks = trainer.world_size
        rule = f"does not divide by the {ranks} ranks"
        if self.plan.problems % ranks:
            raise ConfigurationError(f"{self.plan.problems} {rule}", key="audit.problems")
        if self.gradients and ranks > 1:
            raise ConfigurationError(
                f"whole gradients are compared in one process, and this run has {ranks}: set it to false",
                key="audit.gradients",
            )
        when = self._check_fit(trainer) if stage == "fit" else self._check_validate(trainer)
        longest = self.sampling_of(_rollouts(trainer)).max_new_tokens
        rank_zero_info(f"credit audit {when}: {self.plan.describe(longest)}")

    def _check_fit(self, trainer: Trainer) -> str:
        data = trainer.datamodule
        if _rollouts(trainer) is None:
            raise ConfigurationError("needs the rollouts of GRPO-λ: leave it out of the supervised stage", key="audit")
        self.check_problems(data.prompts_per_iteration, data.iterations)
        return self.times(data.iterations)

    def times(self, iterations: int) -> str:
        """When ``fit`` audits, in words."""
        times = len(range(0, iterations, self.every_n_iterations)) + 1
        return f"before the first iteration, every {self.every_n_iterations} and at the end, {times} times in all"

    def check_problems(self, prompts_per_iteration: int, iterations: int) -> None:
        """Refuses to audit more training problems than a run has."""
        if self.plan.problems > prompts_per_iteration * iterations:
            raise ConfigurationError(
                f"{self.plan.problems} are more than the run's {iterations} iterations of {prompts_per_iteration} "
                "prompts have",
                key="audit.problems",
            )

    def _check_validate(self, trainer: Trainer) -> str:
        return f"of {self.audited_benchmark(trainer.datamodule.benchmark_names)}"

    def audited_benchmark(self, names: list[str]) -> str:
        """The benchmark whose problems ``validate`` audits, out of the data module's.

        Raises:
            ConfigurationError: there is no such benchmark.
        """
        if self.benchmark is None:
            return names[0]
        require_choice(self.benchmark, names, key="audit.benchmark")
        return self.benchmark

    def sampling_of(self, rollouts: RolloutCallback | None) -> SamplingSettings:
        """The distribution that is audited."""
        return self.sampling or (SamplingSettings() if rollouts is None else rollouts.sampling)

    # ── when ──

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: "PolicyModule", batch: PromptBatch, batch_idx: int
    ) -> None:
        """Before the iteration's rollout: a run that is resumed here audits again what it had audited, and the same."""
        self._trained = True
        if batch_idx % self.every_n_iterations == 0:
            for name, value in self._audit_training(trainer, pl_module).items():
                pl_module.log(name, value, logger=False, rank_zero_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        if self._trained:
            self._audit_training(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        """Under ``validate``, when the benchmarks' table is printed."""
        if trainer.state.fn != "validate":
            return
        name = self.audited_benchmark(trainer.datamodule.benchmark_names)
        beside = next(each for each in trainer.callbacks if isinstance(each, BenchmarkEvaluation))
        with self._rewards(trainer) as rewards:
            batch = self._benchmark_batch(trainer, name)
            result = self._audit(trainer, pl_module, batch, beside.ready_engine(trainer, pl_module), rewards)
        folder = Path(beside.folder) if beside.folder else run_folder(trainer) / "evaluation"  # collective
        if result is not None:
            written = self._write(trainer, folder / "credit_audit", result, name)
            print(f"\n{format_audit(result, name)}\n\nsegments and settings: {written}")

    def _audit_training(self, trainer: Trainer, module: "PolicyModule") -> dict[str, float]:
        """Audits and logs; the same metrics on every rank."""
        rollouts, done, started = _rollouts(trainer), iterations_done(trainer), time.perf_counter()
        assert rollouts is not None, "setup has checked it"
        with STOP.interruptible_alone():
            batch = self._training_batch(trainer, done)
            result = self._audit(trainer, module, batch, rollouts.ready_engine(module), rollouts.rewards)
        metrics: dict[str, float] = {}
        folder = run_folder(trainer) / "audit"  # on every rank: Lightning broadcasts the logger's folder
        if result is not None:
            metrics = audit_metrics(result) | {"audit/seconds": time.perf_counter() - started}
            title = f"iteration {done}"
            self._write(trainer, folder / f"iteration-{done:06d}", result, title)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=done)
                add_figure = getattr(logger.experiment, "add_figure", None)
                if add_figure:
                    add_figure("audit", audit_figure(result, title), done)
        shared: dict[str, float] = trainer.strategy.broadcast(metrics)
        return shared

    # ── what ──

    def _training_batch(self, trainer: Trainer, done: int) -> PromptBatch:
        """This rank's problems of the iterations to come, at a run's end of its last ones."""
        data, ranks = trainer.datamodule, trainer.world_size
        share = self.plan.problems // ranks
        count = math.ceil(share / (data.prompts_per_iteration // ranks))
        first = min(done, data.iterations - count)
        batches: list[PromptBatch] = [data.train_batch(first + index) for index in range(count)]
        problems = [problem for batch in batches for problem in batch.problems][:share]
        prompts = [ids for batch in batches for ids in batch.prompt_ids][:share]
        return PromptBatch(done, problems, prompts, thinking=batches[0].thinking)

    def _benchmark_batch(self, trainer: Trainer, name: str) -> PromptBatch:
        """This rank's share of the benchmark's first problems."""
        loader = trainer.val_dataloaders[trainer.datamodule.benchmark_names.index(name)]
        own = list(loader.problems[: self.plan.problems])[trainer.global_rank :: trainer.world_size]
        return PromptBatch(0, own, loader.encode(own), thinking=loader.thinking)

    @contextmanager
    def _rewards(self, trainer: Trainer) -> Iterator[WeightedRewards]:
        """The rollouts' rewards, or correctness alone."""
        rollouts = _rollouts(trainer)
        rewards = WeightedRewards([CorrectnessReward()]) if rollouts is None else rollouts.rewards
        try:
            yield rewards
        finally:
            rewards.close()

    # ── one audit ──

    def _audit(
        self,
        trainer: Trainer,
        module: "PolicyModule",
        batch: PromptBatch,
        engine: RolloutEngine,
        rewards: WeightedRewards,
    ) -> AuditResult | None:
        """Collective; None on all ranks but the first, and where nothing could be scored."""
        self._check_gradients(module)
        rollouts, states = _rollouts(trainer), _collect_rng_states()
        with ExitStack() as after:
            after.callback(_set_rng_states, states)
            after.enter_context(torch.inference_mode(False))  # which `validate` is in: credit is a derivative
            draw = AuditDraw(
                plan=self.plan,
                sampling=self.sampling_of(rollouts),
                generate=engine.generate,
                rewards=rewards,
                tokenizer=module.tokenizer,
                end_token_ids=module.end_token_ids,
                seed=derive_seed(self.seed, "audit", batch.iteration),
                truncation_penalty=0.0 if rollouts is None else rollouts.truncation.taken_off,
            )
            problems = self._drawn(module, draw, batch)
            if not trainer.is_global_zero:
                return None
            rules = _rules(module, rollouts)
            prepared = prepare(problems, rules)
            if prepared is None:
                rank_zero_warn("credit audit: fewer than two problems have a reward for every completion: no result")
                return None
            return conclude(prepared, self.seed, self._gradients(module, prepared, rules, draw.sampling.temperature))

    def _drawn(self, module: "PolicyModule", draw: AuditDraw, batch: PromptBatch) -> list[AuditedProblem]:
        """The problems of all ranks; a reward function that fails on one rank fails on all."""
        assert self._ranks is not None, "setup comes first"
        groups = self._ranks.on_every_rank(partial(draw.sample, batch))
        longest = module.max_over_ranks(max((len(row.token_ids) for group in groups for row in group), default=1))
        own = self._ranks.on_every_rank(partial(draw.continue_all, batch, groups, self.plan.spacing(longest)))
        return self._ranks.gathered(own)[0]

    def _check_gradients(self, module: "PolicyModule") -> None:
        trained = sum(parameter.numel() for parameter in module.policy.parameters() if parameter.requires_grad)
        rules = _rules(module, None)
        needed = gradient_bytes(self.plan.problems, rules.variants, trained)
        if self.gradients and needed > LARGEST_BYTES:
            raise ConfigurationError(
                f"takes {needed / 2**30:.1f} GiB for {self.plan.problems} problems × {rules.variants + 1} gradients of "
                f"{trained:,} parameters, over {LARGEST_BYTES / 2**30:.0f}: fewer audit.problems, or set it to false",
                key="audit.gradients",
            )

    def _gradients(
        self, module: "PolicyModule", prepared: PreparedAudit, rules: CreditRules, temperature: float
    ) -> dict[str, GradientAgreement] | None:
        if not self.gradients:
            return None
        with evaluation(module.policy, module.device):
            found = audit_gradients(prepared, module.policy, module.device, rules, temperature)
        return compare_gradients(products(found), [*prepared.credits, AUDITED], self.seed)

    def _write(self, trainer: Trainer, place: Path, result: AuditResult, title: str) -> Path:
        """``<place>.json`` and ``<place>.png``; returns the former."""
        settings: dict[str, Any] = {"title": title, **asdict(self.plan), "seed": self.seed}
        settings["sampling"] = asdict(self.sampling_of(_rollouts(trainer)))
        written, picture = place.with_suffix(".json"), place.with_suffix(".png")
        write_audit(written, result, settings)
        figure = audit_figure(result, title)
        write_whole(picture, lambda fresh: figure.savefig(fresh, format="png", dpi=100))
        return written


def _rollouts(trainer: Trainer) -> RolloutCallback | None:
    return next((each for each in trainer.callbacks if isinstance(each, RolloutCallback)), None)


def _rules(module: "PolicyModule", rollouts: RolloutCallback | None) -> CreditRules:
    """Those of the run; of a module that knows no objective, the defaults."""
    return CreditRules(
        objective=getattr(module, "objective", ObjectiveSettings()),
        advantages=getattr(module, "advantages", AdvantageSettings()),
        truncation=TruncationSettings() if rollouts is None else rollouts.truncation,
    )
