"""A rollout engine for tests that fails for good, as an engine does that rank 0 drives for all ranks."""

from collections.abc import Sequence

from app.rollout.engine import Completion, GenerationRequest
from app.rollout.faults import EngineFailure
from app.rollout.transformers_engine import TransformersEngine


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
