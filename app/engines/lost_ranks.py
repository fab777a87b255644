"""Which rank's process has ended, where the others only hear that a connection is closed."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.errors import causes

LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")
"""Parts of what torch's collectives say when a process at their other end is gone; some are plain RuntimeErrors."""
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
