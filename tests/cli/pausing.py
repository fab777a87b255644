"""Places of a run where it waits for a test to send its signals."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback

from app.engines.engine import Completion, GenerationRequest
from app.engines.ranks import rank_and_size
from app.engines.transformers_engine import Row, TransformersEngine
from app.stopping import STOP

LIMIT_S = 300


def pause(folder: Path) -> None:
    """Leaves this rank's process id in ``folder``; goes on once a signal is here, or the test says ``go``."""
    fresh = folder / f"fresh-{rank_and_size()[0]}"
    fresh.write_text(str(os.getpid()))
    fresh.rename(folder / f"paused-{rank_and_size()[0]}")
    deadline = time.monotonic() + LIMIT_S
    while not STOP.received and not (folder / "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("no signal came")
        time.sleep(0.02)


class PausingEngine(TransformersEngine):
    """Pauses on every rank before one of its calls decodes.

    Args:
        folder: for :func:`pause`.
        at_call: which call of ``generate``, from 1; 0 is none.
    """

    def __init__(self, folder: str, at_call: int = 0) -> None:
        super().__init__()
        self.folder, self.at_call, self.calls = Path(folder), at_call, 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        self.calls += 1
        return super().generate(requests)

    def _batches(self, requests: Sequence[GenerationRequest], pads: bool) -> Iterator[list[Row]]:
        if 0 < self.calls == self.at_call:  # what is drawn at the start, to see that the engine fits, is no call
            pause(self.folder)
        return super()._batches(requests, pads)


class PausingUpdate(Callback):
    """Pauses on every rank in the middle of an iteration's optimiser step.

    Args:
        folder: for :func:`pause`.
        at_iteration: from 1; 0 is none.
    """

    def __init__(self, folder: str, at_iteration: int = 0) -> None:
        self.folder, self.at_iteration = Path(folder), at_iteration

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self.at_iteration:
            pause(self.folder)
