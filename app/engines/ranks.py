"""What all ranks do together in a rollout, over a process group of its own, beside training's collectives."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from app.errors import CommonError
from app.stopping import StopRequested

T = TypeVar("T")
LONGEST_ROLLOUT = timedelta(days=1)
"""Ranks wait so long for rank 0 to generate; one that dies closes its connections, which ends the wait at once."""


class RolloutRanks:
    """Collectives over all ranks; without a process group, one rank alone.

    Making one is collective. Its group is of gloo, which moves objects between hosts without a GPU, and nothing else
    uses it: a thread that generates ahead never mixes its messages with those of the backward pass.

    Attributes:
        rank: this process.
        size: number of ranks.
    """

    def __init__(self) -> None:
        self.rank, self.size = rank_and_size()
        self._group: Any = None
        if self.size > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_ROLLOUT)

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Runs ``action`` on rank 0; every rank returns its result or raises its exception."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None]
        if self.rank == 0:
            try:
                outcome = [(action(), None)]
            except (Exception, StopRequested) as error:  # noqa: BLE001  raised again below, on every rank
                outcome = [(None, error)]
        torch.distributed.broadcast_object_list(outcome, src=0, group=self._group)
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return result

    def on_every_rank(self, action: Callable[[], T]) -> T:
        """Runs ``action`` on each rank; what fails on one of them fails on all, so that none waits for it.

        Raises:
            CommonError: this rank's own (of an engine, a reward function …), or that of the first rank that had one.
            StopRequested: a signal stopped it on some rank, whatever happened on others.
        """
        own: CommonError | StopRequested | None = None
        try:
            result = action()
        except (CommonError, StopRequested) as error:
            own = error
        outcomes = self.gathered([own])[0]
        stops = [outcome for outcome in outcomes if isinstance(outcome, StopRequested)]
        if stops:
            raise stops[0]
        if own is not None:
            raise own
        for rank, failure in enumerate(outcomes):
            if failure is not None:
                failure.args = (f"on rank {rank}: {failure}",)
                raise failure
        return result

    def gathered(self, values: list[Any]) -> tuple[list[Any], slice]:
        """The values of all ranks in the order of ranks, and where this rank's own lie among them."""
        if self.size == 1:
            return values, slice(0, len(values))
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, values, group=self._group)
        start = sum(len(part) for part in parts[: self.rank])
        return [value for part in parts for value in part], slice(start, start + len(values))

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return self.largest(int(here)) > 0

    def largest(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
