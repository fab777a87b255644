"""Which rank's process has ended, where the others only hear that a connection is closed, or not even that."""

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.errors import causes

LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")
"""Parts of what torch's collectives say when a process at their other end is gone; some are plain RuntimeErrors."""
STARTER = "GRPO_LAMBDA_STARTER"
"""Environment variable: the id of the process that was started by hand, from which Lightning starts the other ranks."""
PATIENCE_S = 2.0
"""Connections close a moment before their process has ended."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> "Place":
        """This process."""
        return cls(socket.gethostname(), os.getpid())

    @property
    def ended(self) -> bool:
        """Whether the process, which must be of this host, runs no more."""
        try:
            os.kill(self.pid, 0)
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return True
        except OSError:  # another user's, or a system without /proc
            return False
        return state in "ZX"  # ended, and not yet waited for


def lost_connection(error: BaseException) -> bool:
    """Whether ``error`` comes of another rank that is gone."""
    return any(
        isinstance(cause, torch.distributed.DistError)
        or (isinstance(cause, RuntimeError) and any(part in str(cause) for part in LOST))
        for cause in causes(error)
    )


def ended_ranks(places: Sequence[Place], patience_s: float = PATIENCE_S) -> list[int]:
    """The ranks on this host whose process has ended; none where the one that is gone ran elsewhere.

    Args:
        places: of all ranks, in their order.
        patience_s: for how long to wait for one to end.
    """
    here, deadline = socket.gethostname(), time.monotonic() + patience_s
    while True:
        ended = [rank for rank, place in enumerate(places) if place.host == here and place.ended]
        if ended or time.monotonic() > deadline:
            return ended
        time.sleep(0.05)


def end_with_starter() -> None:
    """Ends this process with exit code 1 when that which started it ends before all ranks have met.

    To be called first thing. A rank that Lightning started waits for rank 0 to meet it, half an hour in vain where rank
    0 was killed in its own start. Once they have met, closed connections tell. Ranks of torchrun and srun, whose
    launchers end them, are left alone.
    """
    if "LOCAL_RANK" not in os.environ:  # not started by a launcher: it may become one
        os.environ[STARTER] = str(os.getpid())
    elif STARTER in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        starter = Place(socket.gethostname(), int(os.environ[STARTER]))
        # a living process that is not the parent has only handed its environment on, to a launcher of its own
        if os.getppid() == starter.pid or starter.ended:
            threading.Thread(target=_watch, args=(starter.pid,), name="watch the starter", daemon=True).start()


def _watch(starter: int) -> None:
    while not torch.distributed.is_initialized():
        if os.getppid() != starter:
            rank = os.environ["LOCAL_RANK"]
            print(f"error: rank {rank}: the process that started it, {starter}, has ended", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits in torch, which hears no exception
        time.sleep(0.5)
