"""A vLLM engine inside the trainer's process, which sleeps while the policy trains, where the platform can."""

from collections.abc import Sequence
from pathlib import Path

from app.errors import ConfigurationError
from app.rollout.engine import Completion, GenerationRequest
from app.rollout.faults import EngineFailure
from app.rollout.vllm_local import LocalEngine, LocalEngineSettings
from app.rollout.weight_sync import Weights, sum_of_shards

FAILURES = (RuntimeError, ValueError, OSError, MemoryError)
"""What vLLM raises; CUDA's out-of-memory error is a RuntimeError."""


class Colocated:
    """Weights are handed over in memory.

    Args:
        local: what the engine is built from.
        sleep_level: 0 never sleeps, 1 keeps the weights in host memory, 2 drops them.
    """

    engine: LocalEngine

    def __init__(self, local: LocalEngineSettings, sleep_level: int) -> None:
        self.local = local
        self.sleep_level = sleep_level
        self.asleep = False
        self.started = False

    def start(self, folder: Path) -> None:
        """Builds the engine from the files in ``folder``."""
        try:
            self.engine = LocalEngine(folder, self.local)
        except ConfigurationError:
            raise
        except FAILURES as error:
            raise EngineFailure("start", f"vLLM could not start in this process: {error}") from error
        self.started = True

    @property
    def max_model_len(self) -> int:
        """Longest prompt and completion together."""
        return self.engine.max_model_len

    @property
    def needs_weights(self) -> bool:
        """True where sleep dropped the weights."""
        return self.asleep and self.sleep_level == 2

    def load(self, weights: Weights) -> None:
        """Takes over all weights, waking up for them, and empties the prefix cache."""
        if self.asleep:
            self.engine.wake("weights")
        self.engine.reload(weights)
        if self.asleep:
            self.engine.wake("kv_cache")
            self.asleep = False
        self.engine.forget_prefixes()

    def fingerprints(self, widths: dict[str, int], round_number: int) -> list[dict[str, int]]:
        """What this engine holds, by name."""
        return [sum_of_shards(self.engine.call("policy_fingerprints", widths, round_number))]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Wakes up, generates, and goes to sleep."""
        if self.asleep:
            self.engine.wake()
            self.asleep = False
        try:
            groups = self.engine.generate(requests)
        except FAILURES as error:
            raise EngineFailure("died", f"vLLM failed while it generated: {type(error).__name__}: {error}") from error
        if self.engine.can_sleep and self.sleep_level > 0:
            self.engine.sleep(self.sleep_level)
            self.asleep = True
        return groups

    def close(self) -> None:
        """Frees the engine."""
        if self.started:
            self.engine.close()
            self.started = False
