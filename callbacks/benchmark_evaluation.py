"""Benchmarks during ``fit`` and under ``validate``: completions, verdicts, scores with intervals, a samples file."""

import logging
import shutil
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities import rank_zero_info

from app.data.problems import Problem, PromptBatch
from app.data.rows import nearest
from app.engines.engine import GenerationRequest, RolloutEngine, SamplingSettings
from app.engines.faults import GuardedEngine
from app.engines.transformers_engine import TransformersEngine
from app.engines.weight_sync import policy_weights
from app.errors import ConfigurationError
from app.evaluation.benchmarks import BenchmarkSettings, format_table
from app.evaluation.generation import grade_anew, sample_problems
from app.evaluation.golds import report_golds
from app.evaluation.grader_version import grader_version
from app.evaluation.numerics import engine_settings, inner_engine, numerics
from app.evaluation.results import fingerprint, hash_problems, hash_state_dict, write_results
from app.evaluation.samples import SampleLog, check_name, merge_samples, regrade_samples
from app.grading.grader import Grader
from app.policy.sharding.gathering import whole_parameters
from app.seeds import derive_seed
from app.storage.lock import FolderLock
from callbacks.rollouts import RolloutCallback
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from app.evaluation.results import BenchmarkScores
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
    ) -> None:
        self.sampling = sampling
        self.benchmarks = benchmarks or {}
        self.engine = engine
        self.folder = folder
        self.grader_workers = grader_workers
        self.grader_timeout_s = grader_timeout_s
        self.seed = seed
        self._check_grader()
        for name in self.benchmarks:
            self._settings(name)
        self._resources = ExitStack()
        self._own_engine: GuardedEngine | None = None
        self._evaluated: int | None = None  # iterations that were done at the last evaluation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the benchmarks' names, and names gold answers that cannot be read, before any model is loaded."""
        # Scores are broadcast before they are logged, and so equal on all ranks.
        warnings.filterwarnings("ignore", r".*self\.log\('eval/.*sync_dist=True.*")
        known = trainer.datamodule.benchmark_names
        for name in known:
            check_name(name)
        for name in self.benchmarks:
            if name not in known:
                raise ConfigurationError(
                    f"no such benchmark in data.benchmarks; {nearest(name, known)}", key=f"evaluation.benchmarks.{name}"
                )
        if trainer.is_global_zero:
            self._report_golds({name: trainer.datamodule.benchmark_problems(name) for name in known})

    def _report_golds(self, problems: dict[str, list[Problem]]) -> None:
        with self._new_grader() as grader:
            for name, rows in problems.items():
                if line := report_golds(name, rows, grader):
                    log.warning(line)

    def _check_grader(self) -> None:
        try:
            self._new_grader().close()  # no process starts before the first answer
        except ConfigurationError as error:
            rule = str(error).removeprefix(f"{error.key}: ")
            raise ConfigurationError(rule, key=f"evaluation.grader_{error.key}") from error

    def _new_grader(self) -> Grader:
        return Grader(self.grader_workers, self.grader_timeout_s)

    # ── one evaluation ──

    def on_validation_start(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._random_states = _collect_rng_states()
        self._resources = ExitStack()
        self._target = self._output_folder(trainer)
        self._active = self._ready_engine(trainer, pl_module)
        self._model_hash = _hash_weights(pl_module) if trainer.state.fn == "validate" else ""
        names = trainer.datamodule.benchmark_names
        self._seen: dict[str, set[str]] = {name: set() for name in names}  # ids of problems
        self._hashes = dict(zip(names, self._fingerprints(trainer, pl_module, names), strict=True))
        self._grader = self._resources.enter_context(self._new_grader())
        self._grader_fingerprint = fingerprint([grader_version(), self.grader_timeout_s])
        self._grade_anew(trainer, names)
        self._logs = {name: self._open_log(trainer, name) for name in names}
        if isinstance(getattr(self._active, "engine", self._active), TransformersEngine):
            # Gathered once: ranks have different numbers of problems left, and so of calls of the engine.
            self._resources.enter_context(whole_parameters(pl_module.policy))
        trainer.strategy.barrier()

    def _output_folder(self, trainer: Trainer) -> Path:
        """The folder of this evaluation, held against other processes until :meth:`on_validation_end`."""
        validate = trainer.state.fn == "validate"
        root = Path(self.folder) if validate and self.folder else run_folder(trainer) / "evaluation"
        target = root if validate else root / f"iteration-{_iterations_done(trainer):06d}"
        if trainer.is_global_zero:
            self._resources.enter_context(FolderLock(root))
            if not validate:  # a resumed run evaluates anew what lies behind its checkpoint
                shutil.rmtree(target, ignore_errors=True)
        trainer.strategy.barrier()
        return target

    def _grade_anew(self, trainer: Trainer, names: list[str]) -> None:
        """New verdicts for the samples of an interrupted evaluation that another grader judged."""
        fingerprint_now = self._grader_fingerprint
        if trainer.is_global_zero:
            for name, loader in zip(names, trainer.val_dataloaders, strict=True):
                problems = {problem.id: problem for problem in loader.problems}
                count = regrade_samples(
                    self._target,
                    name,
                    self._hashes[name],
                    self._settings(name).samples,
                    fingerprint_now,
                    partial(grade_anew, problems=problems, grader=self._grader, grader_fingerprint=fingerprint_now),
                )
                if count:
                    rank_zero_info(f"{name}: {count} samples are graded anew, for the grader has changed since")
        trainer.strategy.barrier()

    def _open_log(self, trainer: Trainer, name: str) -> SampleLog:
        samples = self._settings(name).samples
        opened = SampleLog(self._target, name, self._hashes[name], samples, trainer.global_rank)
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
        self._seen[name].update(problem.id for problem in batch.problems)
        samples = self._logs[name]
        left = [index for index, problem in enumerate(batch.problems) if problem.id not in samples.done]
        # A rank with nothing left takes its turn all the same: an engine may serve all ranks in one call.
        requests = [self._request(name, batch, index, pl_module.end_token_ids) for index in left]
        problems = [batch.problems[index] for index in left]
        graders = (self._grader, self._grader_fingerprint)
        samples.append(sample_problems(name, problems, requests, self._active, *graders, pl_module.tokenizer))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._grader.close()
        for samples in self._logs.values():
            samples.close()
        problems = self._merge_problems(trainer, pl_module)
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            scores = [self._summarise(name, problems[name]) for name in self._logs]
            metrics = self._report(trainer, pl_module, scores, problems)
        metrics = trainer.strategy.broadcast(metrics)
        for name, value in metrics.items():
            pl_module.log(name, value, logger=False, rank_zero_only=True)
        self._evaluated = _iterations_done(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: "PolicyModule") -> None:
        self._resources.close()
        if trainer.state.fn == "validate":
            self.close()
        _set_rng_states(self._random_states)

    # ── resuming a run ──

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up for an evaluation that was due where the run stopped: the checkpoint of an iteration is saved
        before the evaluation that follows it, and Lightning takes it for done."""
        done = _iterations_done(trainer)
        self._report_end(trainer)
        if 0 < done != self._evaluated and trainer.enable_validation and _is_due(trainer, done):
            _run_validation(trainer)

    @staticmethod
    def _report_end(trainer: Trainer) -> None:
        """Warns where the policy that the run ends with is not evaluated."""
        total, interval = int(trainer.num_training_batches), trainer.val_check_batch
        if trainer.is_global_zero and trainer.enable_validation and isinstance(interval, int) and total % interval:
            last = (
                f"the last evaluation is after iteration {total - total % interval}"
                if total > interval
                else ("no evaluation follows the one before the first iteration")
            )
            log.warning(
                "trainer.val_check_interval is %d and the run has %d iterations: %s, and the policy at its end is not "
                "evaluated",
                interval,
                total,
                last,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated = state_dict["evaluated"]

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

    def _settings(self, name: str) -> BenchmarkSettings:
        settings = self.benchmarks.get(name, BenchmarkSettings())
        try:
            settings.sampling(self.sampling)
        except ConfigurationError as error:
            rule, last = str(error).removeprefix(f"{error.key}: "), str(error.key).rsplit(".", 1)[-1]
            raise ConfigurationError(rule, key=f"evaluation.benchmarks.{name}.{last}") from error
        return settings

    def _request(self, name: str, batch: PromptBatch, index: int, end_token_ids: tuple[int, ...]) -> GenerationRequest:
        settings = self._settings(name)
        seed = derive_seed(self.seed, "evaluation", name, batch.problems[index].id)
        sampling = settings.sampling(self.sampling)
        return GenerationRequest(batch.prompt_ids[index], settings.samples, seed, sampling, end_token_ids)

    def _ready_engine(self, trainer: Trainer, module: "PolicyModule") -> RolloutEngine:
        """The engine with the policy's current weights: its own, the rollouts', or plain transformers."""
        rollouts = [callback for callback in trainer.callbacks if isinstance(callback, RolloutCallback)]
        if self.engine is None and rollouts:
            return rollouts[0].ready_engine(module)
        if self._own_engine is None:
            self._own_engine = GuardedEngine(self.engine or TransformersEngine())
            self._own_engine.start(module)
        self._own_engine.sync(module)
        return self._own_engine

    def _fingerprints(self, trainer: Trainer, module: "PolicyModule", names: list[str]) -> list[str]:
        """By benchmark, of all that its completions depend on; an evaluation goes on only with the same.

        Prompts go in as token ids, so that template, system prompt and tokenizer are in them. The grader does not:
        what another one judged is graded anew.
        """
        if trainer.state.fn != "validate":  # the folder was emptied
            return [fingerprint([_iterations_done(trainer), name]) for name in names]
        arithmetic = numerics(module.sharding.precision, module, self._active)
        common = [self._model_hash, _engine_name(self._active), arithmetic, self.seed, module.end_token_ids]
        found = []
        for name, loader in zip(names, trainer.val_dataloaders, strict=True):
            settings = self._settings(name)
            rows = [[each.id, each.problem, each.answer, repr(sorted(each.extra.items()))] for each in loader.problems]
            sampling = [settings.samples, asdict(settings.sampling(self.sampling))]
            found.append(fingerprint([*common, name, sampling, rows, loader.encode(loader.problems)]))
        return found

    def _merge_problems(self, trainer: Trainer, module: "PolicyModule") -> dict[str, list[Problem]]:
        """By benchmark, the problems that any rank has seen, in the benchmark's order whatever the ranks."""
        ranks = module.gather_objects(self._seen)
        seen = {name: set().union(*(rank[name] for rank in ranks)) for name in self._seen}
        loaders = dict(zip(seen, trainer.val_dataloaders, strict=True))
        return {name: [each for each in loaders[name].problems if each.id in ids] for name, ids in seen.items()}

    def _summarise(self, name: str, problems: Sequence[Problem]) -> "BenchmarkScores":
        from app.evaluation.metrics import summarise

        settings, ids = self._settings(name), [problem.id for problem in problems]
        rows = merge_samples(self._target, name, self._hashes[name], settings.samples, ids)
        return summarise(rows, settings.samples, settings.pass_k, self.seed)

    def _report(
        self,
        trainer: Trainer,
        module: "PolicyModule",
        scores: list["BenchmarkScores"],
        problems: dict[str, list[Problem]],
    ) -> dict[str, float]:
        """Writes and prints the scores; returns them as ``eval/<benchmark>/<metric>``."""
        from app.evaluation.metrics import macro_average

        average = macro_average(scores, self.seed)
        named = [(each.name, each.intervals) for each in scores]
        named += [("average", average)] if len(scores) > 1 else []
        metrics = {f"eval/{name}/{key}": value[0] for name, found in named for key, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=_iterations_done(trainer))
        if trainer.state.fn == "validate":
            hashes = {name: hash_problems(found) for name, found in problems.items()}
            settings = self._all_settings(trainer, module)
            path = write_results(self._target, scores, average, settings, self._model_hash, hashes)
            print(f"{format_table(scores, average)}\n\nscores and settings: {path}")
        return metrics

    def _all_settings(self, trainer: Trainer, module: "PolicyModule") -> dict[str, Any]:
        data = trainer.datamodule
        return {
            "policy": asdict(module.policy_settings),
            "ckpt_path": trainer.ckpt_path,  # whose weights took the place of the policy's
            "engine": _engine_name(self._active),
            "sampling": asdict(self.sampling),
            "benchmarks": {name: asdict(self._settings(name)) for name in self._logs},
            "limits": {name: data.benchmarks[name].limit for name in self._logs},
            "sources": {name: data.benchmarks[name].source.origin() for name in self._logs},
            "prompts": {name: asdict(data.benchmarks[name].prompt or data.prompt) for name in self._logs},
            "grader_timeout_s": self.grader_timeout_s,
            "seed": self.seed,
            "engine_settings": engine_settings(self._active),
            "numerics": numerics(module.sharding.precision, module, self._active),
        }


def _iterations_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed  # ready is of one that a signal cut off, too


def _is_due(trainer: Trainer, done: int) -> bool:
    interval = trainer.val_check_batch
    return interval is not None and interval != float("inf") and done % interval == 0


def _run_validation(trainer: Trainer) -> None:
    """What Lightning does in the course of training when an evaluation is due, before its first iteration."""
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    loop.restarting = False
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def _engine_name(engine: RolloutEngine) -> str:
    return type(inner_engine(engine)).__name__


def _hash_weights(module: "PolicyModule") -> str:
    """Of the whole weights, gathered one at a time where they are sharded: a collective of all ranks."""
    return fingerprint({name: hash_state_dict({name: tensor}) for name, tensor in policy_weights(module.policy)})
