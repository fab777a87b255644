"""The examples of the supervised stage that comes before RL."""

from functools import cached_property

from app.data.prompts import DEFAULT_PROMPT, PromptEncoder, PromptSettings
from app.data.sft import ExampleEncoder, SFTBatch
from app.data.sources import Share, Source
from app.errors import ConfigurationError
from datamodules.base import BenchmarkSettings, OverlapPolicy, ProblemDataModule


class SFTDataModule(ProblemDataModule[SFTBatch]):
    """Batches of prompts with completions to imitate, and benchmarks for validation.

    Args:
        train: source of problems with solutions; may be left out for ``validate``.
        benchmarks: name → benchmark, in the order of the validation loaders.
        batch_size: examples of one step on all ranks together; divides by the number of ranks.
        iterations: length of the run in steps; ``trainer.max_epochs`` is 1.
        prompt: how problems become prompts; as in the RL stage that follows.
        completion_template: what is to be imitated; ``{solution}`` and ``{answer}`` are replaced.
        solution_column: the source's column with the solution.
        max_tokens: longer examples, prompt and EOS included, are left out and counted.
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
        batch_size: int = 64,
        iterations: int = 100,
        prompt: PromptSettings = DEFAULT_PROMPT,
        completion_template: str = "{solution}",
        solution_column: str = "solution",
        max_tokens: int | None = None,
        seed: int = 0,
        benchmark_batch_size: int = 64,
        overlap: OverlapPolicy = "ignore",
    ) -> None:
        global_batch = ("batch_size", batch_size)
        super().__init__(train, benchmarks, global_batch, iterations, prompt, seed, benchmark_batch_size, overlap)
        if max_tokens is not None and max_tokens < 1:
            raise ConfigurationError(f"must be at least 1, got {max_tokens}", key="data.max_tokens")
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.completion_template, self.solution_column = completion_template, solution_column

    @cached_property
    def _encoder(self) -> ExampleEncoder:
        prompts = PromptEncoder(self.prompt, self.tokenizer)
        return ExampleEncoder(prompts, self.completion_template, self.solution_column, self.max_tokens)

    def _make_batch(self, share: Share) -> SFTBatch:
        return self._encoder.batch(self._training_source().draw(share), share.iteration)

    def _ready_exclusions(self, train: Source) -> None:
        prompts = self._encoder.prompts
        if self.prompt.max_prompt_tokens is not None and self.prompt.overlong == "drop":
            train.exclude(f"prompt over {self.prompt.max_prompt_tokens} tokens", prompts.is_overlong)
        if self.max_tokens is not None:
            train.exclude(f"example over {self.max_tokens} tokens", self._encoder.is_overlong)
