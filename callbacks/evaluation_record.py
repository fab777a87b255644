"""What is kept of an evaluation: of what its completions depend on, so that it can go on, and its scores."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Trainer

from app.data.problems import Problem
from app.engines.engine import RolloutEngine
from app.errors import DivergenceError
from app.evaluation.benchmarks import format_table
from app.evaluation.expected import Conditions, compare, format_comparison, reference_model
from app.evaluation.numerics import engine_settings, inner_engine, numerics
from app.evaluation.plan import EvaluationPlan
from app.evaluation.results import fingerprint, hash_problems, hash_state_dict, write_results
from app.evaluation.samples import Sample, merge_samples
from app.policy.sharding.merging import policy_weights
from callbacks.evaluation_timing import iterations_done

if TYPE_CHECKING:
    from app.evaluation.results import BenchmarkScores
    from modules.policy_module import PolicyModule


class EvaluationRecord:
    """One evaluation of one policy by one engine.

    Collective where the policy is sharded: its weights are hashed.

    Args:
        trainer: with the benchmarks' loaders.
        module: the policy's owner.
        plan: how it samples and grades.
        engine: with the policy's weights.
        folder: where its samples and scores go.
    """

    def __init__(
        self, trainer: Trainer, module: "PolicyModule", plan: EvaluationPlan, engine: RolloutEngine, folder: Path
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.names: list[str] = trainer.datamodule.benchmark_names
        self.seen: dict[str, set[str]] = {name: set() for name in self.names}  # ids of problems
        self._left_out: list[tuple[str, str]] = []  # benchmark and id of problems without a distribution to draw from
        self._engine = engine
        self._validates = trainer.state.fn == "validate"
        self._model_hash = _hash_weights(module) if self._validates else ""
        self.hashes = dict(zip(self.names, self._fingerprints(trainer, module), strict=True))

    def _fingerprints(self, trainer: Trainer, module: "PolicyModule") -> list[str]:
        """By benchmark, of all that its completions depend on; an evaluation goes on only with the same.

        Prompts go in as token ids, so that template, system prompt and tokenizer are in them. The grader does not:
        what another one judged is graded anew.
        """
        if not self._validates:  # the folder was emptied
            return [fingerprint([iterations_done(trainer), name]) for name in self.names]
        arithmetic = numerics(module.sharding.precision, module, self._engine)
        common = [self._model_hash, self._engine_name, arithmetic, self.plan.seed, module.end_token_ids]
        found = []
        for name, loader in zip(self.names, trainer.val_dataloaders, strict=True):
            settings = self.plan.settings(name)
            rows = [[each.id, each.problem, each.answer, repr(sorted(each.extra.items()))] for each in loader.problems]
            sampling = [settings.samples, asdict(settings.sampling(self.plan.sampling))]
            found.append(fingerprint([*common, name, sampling, rows, loader.encode(loader.problems)]))
        return found

    @property
    def _engine_name(self) -> str:
        return type(inner_engine(self._engine)).__name__

    def note_left_out(self, name: str, problems: Sequence[Problem], sampled: Sequence[Sample]) -> None:
        """Remembers which of a batch's problems have no samples, for :meth:`check_finite`."""
        ids = {sample.id for sample in sampled}
        self._left_out += [(name, problem.id) for problem in problems if problem.id not in ids]

    def check_finite(self, module: "PolicyModule") -> None:
        """Collective.

        Raises:
            DivergenceError: on all ranks, where a completion's log-probs are not finite: no score would mean anything.
        """
        left_out = [each for rank in module.gather_objects(self._left_out) for each in rank]
        if left_out:
            name, problem = left_out[0]
            raise DivergenceError(
                f"the evaluation gives no scores: log-probs are not finite in completions of {len(left_out)} problems, "
                f"the first {problem!r} of {name}, though all weights are: the policy overflows on them; compute in a "
                "wider format (trainer.precision, the engine's dtype), or evaluate an earlier checkpoint"
            )

    def gather_problems(self, trainer: Trainer, module: "PolicyModule") -> dict[str, list[Problem]]:
        """By benchmark, the problems that any rank has seen, in the benchmark's order. Collective."""
        ranks = module.gather_objects(self.seen)
        seen = {name: set().union(*(rank[name] for rank in ranks)) for name in self.seen}
        loaders = dict(zip(seen, trainer.val_dataloaders, strict=True))
        return {name: [each for each in loaders[name].problems if each.id in ids] for name, ids in seen.items()}

    def report(self, trainer: Trainer, module: "PolicyModule", problems: dict[str, list[Problem]]) -> dict[str, float]:
        """Logs the scores as ``eval/<benchmark>/<metric>`` and returns them; ``validate`` prints them, too."""
        from app.evaluation.metrics import macro_average

        scores = [self._summarise(name, problems[name]) for name in self.names]
        average = macro_average(scores, self.plan.seed)
        named = [(each.name, each.intervals) for each in scores]
        named += [("average", average)] if len(scores) > 1 else []
        metrics = {f"eval/{name}/{key}": value[0] for name, found in named for key, value in found.items()}
        for name, found in named:
            _, low, high = found["accuracy"]
            metrics |= {f"eval/{name}/accuracy_low": low, f"eval/{name}/accuracy_high": high}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=iterations_done(trainer))
        if self._validates:
            hashes = {name: hash_problems(found) for name, found in problems.items()}
            settings = self._all_settings(trainer, module)
            model, rows = self._published(trainer, module, scores)
            path = write_results(self.folder, scores, average, settings, self._model_hash, hashes, rows)
            beside = [format_comparison(model, scores, rows)] if rows else []
            print("\n\n".join([format_table(scores, average), *beside, f"scores and settings: {path}"]))
        return metrics

    def _published(
        self, trainer: Trainer, module: "PolicyModule", scores: list["BenchmarkScores"]
    ) -> tuple[str, list[dict[str, Any]]]:
        """The model whose published scores belong beside these, and a row for each of them."""
        path = None if trainer.ckpt_path else module.policy_settings.path
        model = reference_model(self.plan.reference, path)
        return (model, compare(model, scores, self._conditions(trainer))) if model else ("", [])

    def _conditions(self, trainer: Trainer) -> dict[str, Conditions]:
        data, found = trainer.datamodule, {}
        for name in self.names:
            settings, style = self.plan.settings(name), (data.benchmarks[name].prompt or data.prompt).resolve()
            found[name] = Conditions(settings.sampling(self.plan.sampling), settings.samples, style)
        return found

    def _summarise(self, name: str, problems: Sequence[Problem]) -> "BenchmarkScores":
        from app.evaluation.metrics import summarise

        settings, ids = self.plan.settings(name), [problem.id for problem in problems]
        rows = merge_samples(self.folder, name, self.hashes[name], settings.samples, ids)
        return summarise(rows, settings.samples, settings.pass_k, self.plan.seed)

    def _all_settings(self, trainer: Trainer, module: "PolicyModule") -> dict[str, Any]:
        data, plan = trainer.datamodule, self.plan
        return {
            "policy": asdict(module.policy_settings),
            "ckpt_path": trainer.ckpt_path,  # whose weights took the place of the policy's
            "engine": self._engine_name,
            "sampling": asdict(plan.sampling),
            "benchmarks": {name: asdict(plan.settings(name)) for name in self.names},
            "limits": {name: data.benchmarks[name].limit for name in self.names},
            "sources": {name: data.benchmarks[name].source.origin() for name in self.names},
            "prompts": {name: asdict(data.benchmarks[name].prompt or data.prompt) for name in self.names},
            "first_prompts": self._first_prompts(trainer, module),
            "grader_timeout_s": plan.grader_timeout_s,
            "seed": plan.seed,
            "engine_settings": engine_settings(self._engine),
            "numerics": numerics(module.sharding.precision, module, self._engine),
        }

    def _first_prompts(self, trainer: Trainer, module: "PolicyModule") -> dict[str, Any]:
        """By benchmark, the prompt of its first problem as text and tokens, and what completions end with."""
        loaders = zip(self.names, trainer.val_dataloaders, strict=True)
        return {name: asdict(module.show_prompt(loader.batch(0))) for name, loader in loaders}


def _hash_weights(module: "PolicyModule") -> str:
    """Of the whole weights, gathered one at a time where they are sharded: a collective of all ranks."""
    return fingerprint({name: hash_state_dict({name: tensor}) for name, tensor in policy_weights(module.policy)})
