"""A vLLM engine for tests: in the middle of one rollout a signal reaches its process, or the trainer's."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from app.engines.engine import Completion, GenerationRequest
from app.engines.vllm.engine import VLLMEngine

SECONDS_INTO_THE_ROLLOUT = 0.1


class SignalledEngine(VLLMEngine):
    """A separate engine.

    Args:
        number: of the signal; None sends none.
        victim: "engine" or "trainer".
        at_call: which call of ``generate``, from 1.
        pids: a file that names the engine's processes afterwards.
        **settings: of :class:`VLLMEngine`.
    """

    def __init__(self, number: int | None, victim: str, at_call: int, pids: str, **settings: Any) -> None:
        super().__init__(placement="separate", kv_cache_gib=0.25, **settings)
        self.number, self.victim, self.at_call, self.pids = number, victim, at_call, Path(pids)
        self.calls = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        self.calls += 1
        if self._backend is None:  # the first rank drives the engine for all
            return super().generate(requests)
        leaders = [each.process.pid for each in self._backend.processes]
        family = [pid for leader in leaders for pid in (leader, *_children(leader))]
        self.pids.write_text(" ".join(map(str, family)))
        if self.number is None or self.calls != self.at_call:
            return super().generate(requests)
        os.kill(leaders[0], signal.SIGSTOP)  # however fast the engine is, the signal comes before its answer
        threading.Timer(SECONDS_INTO_THE_ROLLOUT, self._send, (leaders[0],)).start()
        return super().generate(requests)

    def _send(self, engine: int) -> None:
        os.kill(engine if self.victim == "engine" else os.getpid(), signal.Signals(self.number))


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
