"""A vLLM engine inside the trainer's process, which sleeps while the policy trains, where the platform can."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.engines.engine import Completion, GenerationRequest
from app.engines.faults import EngineFailure, FailureKind
from app.engines.vllm.local import LocalEngine, LocalEngineSettings
from app.engines.weight_sync import Weights, sum_of_shards
from app.errors import ConfigurationError, causes

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, AssertionError, LookupError, AttributeError, TypeError)
"""What vLLM raises beside its own errors; CUDA's out-of-memory error is a RuntimeError, and its checks of free memory
are assertions."""


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
        with failing("start", "vLLM could not start in this process"):
            self.engine = LocalEngine(folder, self.local)
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
        with failing("died", "vLLM failed to take over the weights"), self._awake():
            self.engine.reload(weights)

    def adapt(self, rank: int, data: bytes) -> None:
        """Takes over adapters, see :meth:`LocalEngine.adapt`, waking up for them, and empties the prefix cache."""
        with failing("died", "vLLM failed to take over the adapters"), self._awake():
            self.engine.adapt(rank, data)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """Inside there is room for weights, after it for the cache too, which is empty then."""
        if self.asleep:
            self.engine.wake("weights")
        yield
        if self.asleep:
            self.engine.wake("kv_cache")
            self.asleep = False
        self.engine.forget_prefixes()

    def fingerprints(self, widths: dict[str, int], round_number: int) -> list[dict[str, int]]:
        """What this engine holds, by name."""
        with failing("died", "vLLM failed to show its weights"):
            return [sum_of_shards(self.engine.call("policy_fingerprints", widths, round_number))]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Wakes up, generates, and goes to sleep."""
        with failing("died", "vLLM failed while it generated"):
            if self.asleep:
                self.engine.wake()
                self.asleep = False
            groups = self.engine.generate(requests)
            if self.engine.can_sleep and self.sleep_level > 0:
                self.asleep = True  # also where it fails half-way
                self.engine.sleep(self.sleep_level)
            return groups

    def close(self) -> None:
        """Frees the engine. It is woken for that: vLLM's allocator cannot free what sleep has already given back, and
        an engine that is started later in this process would meet its error."""
        if not self.started:
            return
        self.started = False
        if self.asleep:
            with contextlib.suppress(*_failures()):  # no room to wake up in: the process is all that can be freed
                self.engine.wake()
        self.engine.close()


@contextlib.contextmanager
def failing(kind: FailureKind, what: str) -> Iterator[None]:
    """Whatever vLLM raises inside is a failure of the engine, which all ranks hear of and restart after."""
    try:
        yield
    except ConfigurationError:
        raise
    except _failures() as error:
        message = f"{what}: {type(error).__name__}: {error}"
        _forget_frames(error)
        raise EngineFailure(kind, message) from error


def _failures() -> tuple[type[Exception], ...]:
    from vllm.exceptions import VLLMError  # which is an Exception, and nothing more special

    return (*FAILURES, VLLMError)


def _forget_frames(error: BaseException) -> None:
    """Lets go of what the failed calls held: the next engine would find the device's memory still taken by this one."""
    for each in causes(error):
        traceback.clear_frames(each.__traceback__)
