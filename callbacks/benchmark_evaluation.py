"""Benchmarks during ``fit`` and under ``validate``: completions, verdicts, scores with intervals, a samples file."""

import logging
import shutil
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities import rank_zero_info

from app.data.problems import PromptBatch
from app.engines.engine import RolloutEngine, SamplingSettings
from app.engines.faults import GuardedEngine
from app.engines.transformers_engine import TransformersEngine
from app.evaluation.benchmarks import BenchmarkSettings
from app.evaluation.generation import grade_anew, sample_problems
from app.evaluation.plan import EvaluationPlan
from app.evaluation.results import hash_problems
from app.evaluation.samples import SampleLog, regrade_samples
from app.policy.sharding.gathering import whole_parameters
from app.storage.lock import FolderLock
from callbacks.evaluation_record import EvaluationRecord
from callbacks.evaluation_timing import is_due, iterations_done, run_validation, warn_of_unevaluated_end
from callbacks.rollouts import RolloutCallback
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from modules.policy_module import PolicyModule

log = logging.getLogger(__name__)


class BenchmarkEvaluation(Callback):
    """Evaluates the policy on every benchmark of the data module, batch by batch of Lightning's validation loop.

    Under ``fit`` it runs before the first iteration and then as ``trainer.val_check_interval`` says; scores go to
    the loggers as ``eval/<benchmark>/<metric>``, samples to ``evaluation/iteration-<n>`` in the run's folder.
    Under ``validate`` it prints the table, writes ``results.json``, and an evaluation that was interrupted goes
    on where it stopped when ``folder`` is given again.

    Args:
        sampling: the common settings; greedy by default.
        benchmarks: settings by benchmark's name, over the common ones.
        engine: what generates; by default the rollouts' engine, or transformers where there are no rollouts.
        folder: where ``validate`` writes; by default ``evaluation`` in the run's folder.
        grader_workers: processes that grade.
        grader_timeout_s: wall limit of one verdict, in seconds.
        seed: of sampling; sample i of a problem depends on (seed, benchmark, the problem's id, i) alone.
        reference: the model whose published scores ``validate`` prints beside its own
            (``app.evaluation.published``); by default that which the policy's folder or hub id is named after.
    """

    def __init__(
        self,
        sampling: SamplingSettings = SamplingSettings(temperature=0.0),  # noqa: B008  frozen: shared safely
        benchmarks: dict[str, BenchmarkSettings] | None = None,
        engine: RolloutEngine | None = None,
        folder: str | None = None,
        grader_workers: int = 2,
        grader_timeout_s: float = 3.0,
        seed: int = 0,
        reference: str | None = None,
    ) -> None:
        self.plan = EvaluationPlan(sampling, benchmarks or {}, grader_workers, grader_timeout_s, seed, reference)
        self.engine = engine
        self.folder = folder
        self._resources = ExitStack()
        self._own_engine: GuardedEngine | None = None
        self._contents: dict[str, str] = {}  # hashes by benchmark's name, on rank 0
        self._evaluated: int | None = None  # iterations that were done at the last evaluation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the benchmarks' names, and names gold answers that cannot be read, before any model is loaded."""
        # Scores are broadcast before they are logged, and so equal on all ranks.
        warnings.filterwarnings("ignore", r".*self\.log\('eval/.*sync_dist=True.*")
        data = trainer.datamodule
        self.plan.check_names(data.benchmark_names)
        if trainer.is_global_zero:
            problems = {name: data.benchmark_problems(name) for name in data.benchmark_names}
            self._contents = {name: hash_problems(rows) for name, rows in problems.items()}
            for line in self.plan.unreadable_golds(problems):
                log.warning(line)

    # ── one evaluation ──

    def on_validation_start(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._random_states = _collect_rng_states()
        self._resources = ExitStack()
        pl_module.check_weights(*_moment(trainer))
        folder = self._output_folder(trainer)
        self._active = self.ready_engine(trainer, pl_module)
        self._record = EvaluationRecord(trainer, pl_module, self.plan, self._active, folder)
        self._grader = self._resources.enter_context(self.plan.new_grader())
        self._grade_anew(trainer)
        self._logs = {name: self._open_log(trainer, name) for name in self._record.names}
        if isinstance(getattr(self._active, "engine", self._active), TransformersEngine):
            # Gathered once: ranks have different numbers of problems left, and so of calls of the engine.
            self._resources.enter_context(whole_parameters(pl_module.policy))
        trainer.strategy.barrier()

    def _output_folder(self, trainer: Trainer) -> Path:
        """The folder of this evaluation, held against other processes until :meth:`on_validation_end`."""
        validate = trainer.state.fn == "validate"
        root = Path(self.folder) if validate and self.folder else run_folder(trainer) / "evaluation"
        target = root if validate else root / f"iteration-{iterations_done(trainer):06d}"
        if trainer.is_global_zero:
            self._resources.enter_context(FolderLock(root))
            if not validate:  # a resumed run evaluates anew what lies behind its checkpoint
                shutil.rmtree(target, ignore_errors=True)
        trainer.strategy.barrier()
        return target

    def _grade_anew(self, trainer: Trainer) -> None:
        """New verdicts for the samples of an interrupted evaluation that another grader judged."""
        record, now = self._record, self.plan.grader_fingerprint
        if trainer.is_global_zero:
            for name, loader in zip(record.names, trainer.val_dataloaders, strict=True):
                problems = {problem.id: problem for problem in loader.problems}
                given: dict[str, Any] = {"problems": problems, "grader": self._grader, "grader_fingerprint": now}
                judge = partial(grade_anew, thinking=loader.thinking, **given)
                samples = self.plan.settings(name).samples
                count = regrade_samples(record.folder, name, record.hashes[name], samples, now, judge)
                if count:
                    rank_zero_info(f"{name}: {count} samples are graded anew, for the grader has changed since")
        trainer.strategy.barrier()

    def _open_log(self, trainer: Trainer, name: str) -> SampleLog:
        record, samples = self._record, self.plan.settings(name).samples
        opened = SampleLog(record.folder, name, record.hashes[name], samples, trainer.global_rank)
        return self._resources.enter_context(opened)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: "PolicyModule",
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        name = trainer.datamodule.benchmark_names[dataloader_idx]
        self._record.seen[name].update(problem.id for problem in batch.problems)
        samples = self._logs[name]
        left = [index for index, problem in enumerate(batch.problems) if problem.id not in samples.done]
        # A rank with nothing left takes its turn all the same: an engine may serve all ranks in one call.
        problems, ends = [batch.problems[index] for index in left], pl_module.end_token_ids
        prompts = [batch.prompt_ids[index] for index in left]
        requests = [self.plan.request(name, *each, ends) for each in zip(problems, prompts, strict=True)]
        reading = (self._grader, self.plan.grader_fingerprint, pl_module.tokenizer, batch.thinking)
        sampled = sample_problems(name, problems, requests, self._active, *reading)
        self._record.note_left_out(name, problems, sampled)
        samples.append(sampled)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._grader.close()
        for samples in self._logs.values():
            samples.close()
        self._record.check_finite(pl_module)
        problems = self._record.gather_problems(trainer, pl_module)
        metrics = self._record.report(trainer, pl_module, problems) if trainer.is_global_zero else {}
        metrics = trainer.strategy.broadcast(metrics)
        for name, value in metrics.items():
            pl_module.log(name, value, logger=False, rank_zero_only=True)
        self._evaluated = iterations_done(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._resources.close()
        if trainer.state.fn == "validate":
            self.close()
        _set_rng_states(self._random_states)

    # ── resuming a run ──

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up for an evaluation that was due where the run stopped: the checkpoint of an iteration is saved
        before the evaluation that follows it, and Lightning takes it for done."""
        done = iterations_done(trainer)
        if trainer.is_global_zero:
            warn_of_unevaluated_end(trainer)
        if 0 < done != self._evaluated and trainer.enable_validation and is_due(trainer, done):
            run_validation(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated": self._evaluated, "contents": self._contents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns of benchmarks whose scores will not be comparable with those that the run has had so far."""
        self._evaluated = state_dict["evaluated"]
        for name, content in state_dict.get("contents", {}).items():
            if self._contents.get(name, content) != content:
                log.warning(
                    "data.benchmarks.%s: its problems or answers are not those that the checkpoint's run was evaluated "
                    "on; scores before and after do not compare",
                    name,
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Ends graders and an engine of this callback's own and lets go of its folder; safe to call again."""
        self._resources.close()
        if self._own_engine is not None:
            self._own_engine.close()
            self._own_engine = None

    def ready_engine(self, trainer: Trainer, module: "PolicyModule") -> RolloutEngine:
        """The engine with the policy's current weights: its own, the rollouts', or plain transformers."""
        rollouts = [callback for callback in trainer.callbacks if isinstance(callback, RolloutCallback)]
        if self.engine is None and rollouts:
            return rollouts[0].ready_engine(module)
        if self._own_engine is None:
            self._own_engine = GuardedEngine(self.engine or TransformersEngine())
            self._own_engine.start(module)
        self._own_engine.sync(module)
        return self._own_engine


def _moment(trainer: Trainer) -> tuple[str, ...]:
    """When a policy is looked at, and under ``validate`` what to say of one that cannot be evaluated."""
    if trainer.state.fn != "validate":
        return (f"after iteration {done}" if (done := iterations_done(trainer)) else "before the first iteration",)
    return "as it was loaded,", "there is nothing to evaluate; its run has diverged, or the file is damaged"
