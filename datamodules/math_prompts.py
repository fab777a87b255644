"""The prompts of RL: one batch is one iteration."""

from dataclasses import replace
from functools import cached_property

from app.data.problems import PromptBatch
from app.data.prompts import DEFAULT_PROMPT, PromptEncoder, PromptSettings
from app.data.sources import Share, Source
from app.errors import ConfigurationError
from app.evaluation.golds import unparseable_golds
from app.grading.grader import Grader
from app.rewards.correctness import CorrectnessReward
from app.seeds import derive_seed
from callbacks.rollouts import RolloutCallback
from datamodules.base import BenchmarkSettings, OverlapPolicy, ProblemDataModule


class MathPromptDataModule(ProblemDataModule[PromptBatch]):
    """Batches of prompts for training, and benchmarks for validation.

    Args:
        train: source of the training problems; may be left out for ``validate``.
        benchmarks: name → benchmark, in the order of the validation loaders.
        prompts_per_iteration: prompts of one iteration on all ranks together; divides by the number of ranks.
        iterations: length of the run; ``trainer.max_epochs`` is 1.
        prompt: how problems become prompts.
        seed: of the order of problems.
        benchmark_batch_size: problems in one rank's validation batch.
        overlap: what to do about training problems that stand in a benchmark: ``ignore``; ``report`` them in
            the log; ``drop_exact`` those with the same letters and digits; ``drop`` those that share 13 words
            in a row too.
    """

    def __init__(
        self,
        train: Source | None = None,
        benchmarks: dict[str, BenchmarkSettings] | None = None,
        prompts_per_iteration: int = 16,
        iterations: int = 100,
        prompt: PromptSettings = DEFAULT_PROMPT,
        seed: int = 0,
        benchmark_batch_size: int = 64,
        overlap: OverlapPolicy = "ignore",
    ) -> None:
        global_batch = ("prompts_per_iteration", prompts_per_iteration)
        super().__init__(train, benchmarks, global_batch, iterations, prompt, seed, benchmark_batch_size, overlap)
        self.prompts_per_iteration = prompts_per_iteration

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self.prompt, self.tokenizer, self.context)

    def _make_batch(self, share: Share) -> PromptBatch:
        problems = self._training_source().draw(share)
        encoder = self._encoder
        return PromptBatch(share.iteration, problems, encoder.encode(problems), share.first_index, encoder.thinking)

    def spare_batch(self, iteration: int, extra_round: int) -> PromptBatch:
        """Further prompts for an iteration, for dynamic sampling: a pure function of (seed, iteration, round, rank).

        Raises:
            ConfigurationError: a streamed training set, which has no second order to draw from.
        """
        if self._training_source().streamed:
            raise ConfigurationError("needs a training set that is not streamed", key="rollouts.dynamic_sampling")
        share = replace(self._share(iteration), seed=derive_seed(self.seed, "spare", extra_round))
        return self._make_batch(share)

    def _ready_exclusions(self, train: Source) -> None:
        if self.prompt.max_prompt_tokens is not None and self.prompt.overlong == "drop":
            train.exclude(f"prompt over {self.prompt.max_prompt_tokens} tokens", self._encoder.is_overlong)
        if train.finite and self.prompt.overlong != "truncate":
            self._encoder.check_context(train.problems(), train.report.place)

    def _check_golds(self, train: Source) -> None:
        """A gold answer that the run's grader cannot read makes its row malformed, where correctness is rewarded.

        A source with an end is checked whole and by rank 0 alone, so that all ranks leave out the same rows; a stream
        as its rows are read, by the rank that reads them.
        """
        grader = self._grader()
        if grader is None:
            return
        if not train.finite:
            train.check_golds(lambda problem: bool(unparseable_golds([problem], grader)))
            return
        found = unparseable_golds(train.problems(), grader) if self.rank == 0 else []
        ids = self.trainer.strategy.broadcast({problem.id for problem in found})
        if ids:
            train.check_golds(lambda problem: problem.id in ids)

    def _grader(self) -> Grader | None:
        """That of the rollouts' reward for correctness; None where other rewards alone have a weight."""
        for callback in self.trainer.callbacks if self.trainer else []:
            if isinstance(callback, RolloutCallback):
                for function in callback.rewards.functions:
                    if isinstance(function, CorrectnessReward) and callback.rewards.weights[function.name]:
                        return function.grader
        return None
