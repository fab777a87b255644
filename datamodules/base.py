"""What the data modules of RL and supervised stage share: batches by iteration, and benchmarks."""

import logging
from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from app.data.overlap import BenchmarkIndex, overlap_table
from app.data.problems import Problem
from app.data.prompts import PromptEncoder, PromptSettings
from app.data.sft import SFTBatch
from app.data.sources import Share, Source
from app.errors import ConfigurationError
from app.evaluation.results import fingerprint
from app.policy.context import context_length
from app.policy.prompt_record import as_trained
from datamodules.loaders import BenchmarkLoader, IterationLoader, Opaque

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
OverlapPolicy = Literal["ignore", "report", "drop_exact", "drop"]

_OTHER_PROBLEMS = "from here on the run reads other problems than it would have"
RECENT_BATCHES = 64
"""Batches kept for those who look ahead; a streamed source would have to begin anew to give them again."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """One benchmark.

    Attributes:
        source: its problems; must have an end.
        limit: the first so many of them; all if not given.
        prompt: how its prompts are made; as in training if not given.
    """

    source: Source
    limit: int | None = None
    prompt: PromptSettings | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"must be at least 1, got {self.limit}", key="data.benchmarks.limit")


class ProblemDataModule(pl.LightningDataModule, Generic[Batch]):
    """Batches that are a pure function of (seed, iteration, rank), and benchmarks for validation.

    Args:
        train: source of the training problems; None for ``validate``.
        benchmarks: name → benchmark, in the order of the validation loaders.
        global_batch: (configuration key, problems a step on all ranks together).
        iterations: length of the run, in batches.
        prompt: how problems become prompts.
        seed: of the order of problems.
        benchmark_batch_size: problems in one rank's validation batch.
        overlap: what to do about training problems that stand in a benchmark: ``ignore``; ``report`` them in
            the log; ``drop_exact`` those with the same letters and digits; ``drop`` those that share 13 words
            in a row too.
    """

    def __init__(
        self,
        train: Source | None,
        benchmarks: dict[str, BenchmarkSettings] | None,
        global_batch: tuple[str, int],
        iterations: int,
        prompt: PromptSettings,
        seed: int,
        benchmark_batch_size: int,
        overlap: OverlapPolicy,
    ) -> None:
        super().__init__()
        self._batch_key, self._global_batch = global_batch
        sizes = {
            "iterations": iterations,
            "benchmark_batch_size": benchmark_batch_size,
            self._batch_key: self._global_batch,
        }
        for key, size in sizes.items():
            if size < 1:
                raise ConfigurationError(f"must be at least 1, got {size}", key=f"data.{key}")
        if overlap not in ("ignore", "report", "drop_exact", "drop"):
            raise ConfigurationError(f"is ignore, report, drop_exact or drop, got {overlap!r}", key="data.overlap")
        self.train, self.benchmarks = train, benchmarks or {}
        self.iterations, self.seed, self.overlap = iterations, seed, overlap
        self.prompt = prompt
        self.benchmark_batch_size = benchmark_batch_size
        self._recent: OrderedDict[int, Batch] = OrderedDict()
        self._train_is_ready = False
        self._expected_content: str | None = None  # of the training set, in the checkpoint that a run resumes from
        self._reported: set[str] = set()

    @property
    def benchmark_names(self) -> list[str]:
        """The benchmarks' names, in the order of the validation loaders."""
        return list(self.benchmarks)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The policy's tokenizer, from the LightningModule."""
        if self.trainer is None:
            raise RuntimeError("a data module reads the tokenizer from its trainer's module, and has no trainer")
        tokenizer: PreTrainedTokenizerBase = self.trainer.lightning_module.tokenizer
        return tokenizer

    @property
    def context(self) -> int | None:
        """Tokens of the policy's longest row, once it is loaded; None where it has no limit."""
        policy = getattr(self.trainer.lightning_module, "policy", None) if self.trainer else None
        return None if policy is None else context_length(policy.config)

    @property
    def rank(self) -> int:
        """This process among those that share a batch."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Number of processes that share a batch."""
        return self.trainer.world_size if self.trainer else 1

    def setup(self, stage: str) -> None:
        """Checks what a run needs and reads what can be read without a tokenizer."""
        self._recent.clear()
        for name, benchmark in self.benchmarks.items():
            self.benchmark_problems(name)
            self._report_rows(benchmark.source)
        if stage != TrainerFn.FITTING:
            return
        if self.train is None:
            raise ConfigurationError("fit needs a training set", key="data.train")
        if self._global_batch % self.world_size:
            raise ConfigurationError(
                f"{self._global_batch} does not divide by the {self.world_size} ranks",
                key=f"data.{self._batch_key}",
            )
        if self.trainer is not None and self.trainer.max_epochs != 1:
            raise ConfigurationError("must be 1: data.iterations says how long a run is", key="trainer.max_epochs")
        origin = ", ".join(f"{key} {value}" for key, value in self.train.origin().items() if value is not None)
        rank_zero_info(f"training set {self.train.name}: {origin}")
        self._check_golds(self.train)
        self._treat_overlap(self.train)
        if self.train.finite:
            self.train.problems()
        self._report_rows(self.train)

    def ask_as_trained(self, policy_path: str | None) -> None:
        """Takes from the policy's record what settings of prompts leave open, and warns where they differ from it."""
        self.prompt = self._as_trained("data.prompt", self.prompt, policy_path)
        for name, each in self.benchmarks.items():
            if each.prompt is not None:
                prompt = self._as_trained(f"data.benchmarks.{name}.prompt", each.prompt, policy_path)
                self.benchmarks[name] = replace(each, prompt=prompt)

    def _as_trained(self, key: str, settings: PromptSettings, policy_path: str | None) -> PromptSettings:
        settings, different = as_trained(settings, policy_path)
        line = f"{key} is not that which {policy_path} was trained with: {different}"
        if different and line not in self._reported:
            self._reported.add(line)
            self._warn(line)
        return settings

    def benchmark_problems(self, name: str) -> list[Problem]:
        """The problems of one benchmark, up to its limit."""
        settings = self.benchmarks[name]
        return settings.source.problems()[: settings.limit]

    def train_batch(self, iteration: int) -> Batch:
        """This rank's batch of an iteration, also of one that is still to come.

        Raises:
            IndexError: the run has no such iteration.
        """
        if not 0 <= iteration < self.iterations:
            raise IndexError(f"iteration {iteration} is not in 0 … {self.iterations - 1}")
        if iteration not in self._recent:
            self._recent[iteration] = self._make_batch(self._share(iteration))
            if len(self._recent) > RECENT_BATCHES:
                self._recent.popitem(last=False)
        return self._recent[iteration]

    def train_dataloader(self) -> IterationLoader:
        self._ready_train()
        self._reopen_epoch()
        return IterationLoader(self.train_batch, self.iterations, self._finished_iterations)

    def val_dataloader(self) -> list[BenchmarkLoader]:
        return [self._benchmark_loader(name) for name in self.benchmarks]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch.batch if isinstance(batch, Opaque) else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, SFTBatch) else batch

    def state_dict(self) -> dict[str, Any]:
        """What the order of problems depends on (where the run stands is in the loader's state)."""
        return {**self._order(), "content": self._content()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns where a resumed run will not read what the uninterrupted one would have."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._expected_content = state_dict.get("content")
        for key, value in self._order().items():
            if state_dict.get(key, value) != value:
                self._warn(f"data.{key} is {value}, the checkpoint was made with {state_dict[key]}: {_OTHER_PROBLEMS}")

    def _order(self) -> dict[str, Any]:
        return {"seed": self.seed, self._batch_key: self._global_batch}

    def _content(self) -> str | None:
        """Depends on every training problem and on their order; None for a source that cannot list them."""
        train = self._training_source()
        if not train.finite:
            return None
        return fingerprint([_identity(problem) for problem in train.problems()])

    @abstractmethod
    def _make_batch(self, share: Share) -> Batch:
        """The batch of one share."""

    @abstractmethod
    def _ready_exclusions(self, train: Source) -> None:
        """Excludes training problems that only a tokenizer can tell."""

    def _check_golds(self, train: Source) -> None:
        """Makes gold answers that the run's grader cannot read a matter of loading; here there is no grader."""

    def _training_source(self) -> Source:
        if self.train is None:
            raise ConfigurationError("there is no training set", key="data.train")
        return self.train

    def _ready_train(self) -> None:
        if self._train_is_ready:
            return
        train = self._training_source()
        self._ready_exclusions(train)
        content = self._content()
        self._report_rows(train)
        if train.finite:
            rank_zero_info(f"training set {train.name}: {len(train.problems())} problems, content {content}")
        if self._expected_content not in (None, content):
            self._warn(
                f"data.train has the content {content}, the checkpoint was made with {self._expected_content}: "
                + _OTHER_PROBLEMS
            )
        self._train_is_ready = True

    def _report_rows(self, source: Source) -> None:
        """Names, once, what became of rows that are no problems of the run."""
        summary = source.report.summary()
        if not source.report.is_clean and summary not in self._reported:
            self._reported.add(summary)
            self._warn(summary)

    def _warn(self, line: str) -> None:
        if self.rank == 0:
            log.warning(line)

    def _share(self, iteration: int) -> Share:
        self._ready_train()
        return Share(self.seed, iteration, self.rank, self.world_size, self._global_batch // self.world_size)

    def _reopen_epoch(self) -> None:
        """Lets a finished run go on where it resumes with more iterations than it had.

        Its checkpoint says that the epoch, that is the run, is over, and Lightning would stop without a word.
        """
        if self.trainer is None:
            return
        fit_loop = self.trainer.fit_loop
        batches, epochs = fit_loop.epoch_loop.batch_progress, fit_loop.epoch_progress
        if not batches.is_last_batch:
            return
        if batches.current.processed >= self.iterations:
            rank_zero_info(
                f"all {self.iterations} iterations of this run are behind the checkpoint: nothing is left to train; "
                "it goes on with more data.iterations"
            )
            return
        batches.is_last_batch = False
        for progress in (epochs.current, epochs.total):
            progress.processed = progress.completed = 0
        fit_loop.restarting = True

    def _finished_iterations(self) -> int:
        # `processed` counts a batch when its training step is over, before the hooks that save checkpoints.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed

    def _benchmark_loader(self, name: str) -> BenchmarkLoader:
        encoder = PromptEncoder(self.benchmarks[name].prompt or self.prompt, self.tokenizer, self.context)
        return BenchmarkLoader(
            self.benchmark_problems(name),
            encoder.encode,
            self.benchmark_batch_size,
            self.rank,
            self.world_size,
            encoder.thinking,
        )

    def _treat_overlap(self, train: Source) -> None:
        if self.overlap == "ignore" or not self.benchmarks:
            return
        index = BenchmarkIndex({name: self.benchmark_problems(name) for name in self.benchmarks})
        if train.finite:
            table = overlap_table(index.report(train.problems()))
            rank_zero_info(f"training set {train.name} against the benchmarks:\n{table}")
        elif self.overlap == "report":
            raise ConfigurationError(
                "a streamed training set cannot be reported on: drop, or ignore", key="data.overlap"
            )
        if self.overlap == "drop_exact":
            train.exclude("in a benchmark", lambda problem: bool(index.exact_matches(problem.problem)))
        elif self.overlap == "drop":
            train.exclude("in a benchmark", index.overlaps)


def _identity(problem: Problem) -> list[Any]:
    """What a problem is to a run; conversations alone have a history."""
    return [problem.id, problem.problem, problem.answer, *([problem.history] if problem.history else [])]
