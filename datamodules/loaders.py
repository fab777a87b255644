"""Loaders that Lightning iterates over: batches by number, from where a run stopped."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.data.problems import Problem, PromptBatch
from app.errors import ConfigurationError
from app.grading.thinking import NO_OPEN_THOUGHT, Thinking


class Opaque:
    """Carries a batch past the precision plugin, which walks through dataclasses and refuses frozen ones.

    The data module takes the batch out again in ``on_before_batch_transfer``; no other hook sees this class.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class IterationLoader:
    """The training batches of iterations ``start`` … ``iterations`` − 1.

    Lightning saves and restores the state of loaders that have one, and counts ``batch_idx`` on from the same
    place, so that ``batch_idx`` is the iteration in a resumed run too. The length is that of the whole run.

    Args:
        batch: iteration → this rank's batch.
        iterations: of the whole run.
        finished: how many iterations are done, asked when a checkpoint is saved.
    """

    def __init__(self, batch: Callable[[int], Any], iterations: int, finished: Callable[[], int]) -> None:
        self._batch, self._iterations, self._finished = batch, iterations, finished
        self.start = 0

    def __len__(self) -> int:
        return self._iterations

    def __iter__(self) -> Iterator[Opaque]:
        for iteration in range(self.start, self._iterations):
            yield Opaque(self._batch(iteration))

    def state_dict(self) -> dict[str, int]:
        """Where a run goes on from a checkpoint saved now."""
        return {"next_iteration": self._finished()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ConfigurationError where the checkpoint is further than this run goes."""
        if state["next_iteration"] > self._iterations:
            raise ConfigurationError(
                f"the checkpoint has {state['next_iteration']} iterations behind it, over {self._iterations}",
                key="data.iterations",
            )
        self.start = state["next_iteration"]


@dataclass(frozen=True)
class BenchmarkLoader:
    """One rank's batches of a benchmark.

    Batch b of all ranks together is a run of problems in the benchmark's order, cut into one piece a rank.
    Every rank has the same number of batches; at the end some are shorter or empty, none holds a problem
    twice.

    Attributes:
        problems: the whole benchmark.
        encode: problems → prompts' token ids.
        batch_size: problems in one rank's batch.
        rank: this process.
        world_size: number of processes.
        thinking: see :class:`PromptBatch`.
    """

    problems: Sequence[Problem]
    encode: Callable[[Sequence[Problem]], list[list[int]]]
    batch_size: int
    rank: int
    world_size: int
    thinking: Thinking = NO_OPEN_THOUGHT

    def __len__(self) -> int:
        return math.ceil(len(self.problems) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Opaque]:
        for index in range(len(self)):
            yield Opaque(self.batch(index))

    def batch(self, index: int) -> PromptBatch:
        """Batch ``index``; its ``first_index`` counts from the benchmark's beginning."""
        first = min((index * self.world_size + self.rank) * self.batch_size, len(self.problems))
        problems = list(self.problems[first : first + self.batch_size])
        return PromptBatch(index, problems, self.encode(problems), first, self.thinking)
