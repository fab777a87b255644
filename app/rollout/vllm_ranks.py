"""One rank acts for all: results and errors reach every rank, so that none waits for one that gave up."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def on_rank_zero(action: Callable[[], T]) -> T:
    """Runs ``action`` on rank 0; every rank returns its result or raises its exception."""
    rank, size = rank_and_size()
    if size == 1:
        return action()
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [(action(), None)]
        except Exception as error:  # noqa: BLE001  raised again below, on every rank
            outcome = [(None, error)]
    torch.distributed.broadcast_object_list(outcome, src=0)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result


def gathered(values: list[Any]) -> tuple[list[Any], slice]:
    """The values of all ranks in the order of ranks, and where this rank's own lie among them."""
    rank, size = rank_and_size()
    if size == 1:
        return values, slice(0, len(values))
    parts: list[Any] = [None] * size
    torch.distributed.all_gather_object(parts, values)
    start = sum(len(part) for part in parts[:rank])
    return [value for part in parts for value in part], slice(start, start + len(values))
