"""For tests: an engine that fails for good on all ranks, and an engine and a reward that are wrong on one of them."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from app.engines.engine import Completion, GenerationRequest
from app.engines.faults import EngineFailure
from app.engines.ranks import rank_and_size
from app.engines.transformers_engine import TransformersEngine
from app.rewards.reward import RewardSample
from tests.running import digit_share


class FailingEngine(TransformersEngine):
    """Transformers, until it fails.

    Args:
        at_call: the first call of ``generate`` that fails, from 1; so does every later one.
    """

    def __init__(self, at_call: int) -> None:
        super().__init__()
        self.at_call = at_call
        self.calls = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        self.calls += 1
        if self.calls >= self.at_call:
            raise EngineFailure("died", "for a test")
        return super().generate(requests)


def fails_on_the_second_rank(samples: Sequence[RewardSample]) -> list[float | None]:
    """A reward that raises in the third iteration, on one rank."""
    fails_on_the_second_rank.calls += 1  # type: ignore[attr-defined]
    if rank_and_size()[0] == 1 and fails_on_the_second_rank.calls > 2:  # type: ignore[attr-defined]
        raise ValueError("no such column")
    return digit_share(samples)


fails_on_the_second_rank.calls = 0  # type: ignore[attr-defined]


def kills_the_second_rank(samples: Sequence[RewardSample]) -> list[float | None]:
    """A reward in whose third call one rank is killed, as a host that runs out of memory does."""
    kills_the_second_rank.calls += 1  # type: ignore[attr-defined]
    if rank_and_size()[0] == 1 and kills_the_second_rank.calls > 2:  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGKILL)
    return digit_share(samples)


kills_the_second_rank.calls = 0  # type: ignore[attr-defined]


class LyingEngine(TransformersEngine):
    """Transformers, which on the second rank reports every token as likely as any other."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        groups = super().generate(requests)
        if rank_and_size()[0] == 0:
            return groups
        return [[replace(row, log_probs=[-4.0] * len(row.log_probs)) for row in group] for group in groups]
