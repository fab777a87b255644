"""What an engine's failure is called, and the one restart that a rollout may cost."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from app.engines.engine import Completion, Ended, GenerationRequest, PolicyOwner, RolloutEngine
from app.errors import CommonError
from app.stopping import STOP

FailureKind = Literal["start", "died", "hung", "refused"]
log = logging.getLogger(__name__)


class EngineFailure(CommonError):
    """A rollout engine failed.

    Args:
        kind: "start" (it could not start), "died" (its process ended), "hung" (no answer in time) or "refused"
            (it answered with an error).
        message: what happened and what to do.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["EngineFailure"], tuple[FailureKind, str]]:
        return EngineFailure, (self.kind, str(self))  # other ranks hear of it too


class GuardedEngine:
    """A rollout engine that survives one failure of the engine inside at each call.

    After a failure in ``sync`` or ``generate`` the engine is closed and started again, the current weights are handed
    over and the same requests are made: their seeds are their own, so the samples are those that the failed call
    would have given. A second failure in the same call raises.

    Attributes:
        restarts: how often the engine was restarted so far.
    """

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine
        self.restarts = 0
        self._module: PolicyOwner | None = None

    def start(self, module: PolicyOwner) -> None:
        """Starts the engine; a failure here raises, for nothing has worked before."""
        self._module = module
        with STOP.interruptible_alone():
            self.engine.start(module)

    def sync(self, module: PolicyOwner) -> None:
        """Hands over the weights; on a failure the engine is restarted, which hands them over too."""
        self._module = module
        with STOP.interruptible_alone():
            try:
                self.engine.sync(module)
            except EngineFailure as failure:
                self.restart(failure)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """The completions of ``requests``, from a restarted engine where the first one failed.

        Raises:
            EngineFailure: on the second failure.
            StopRequested: on all ranks, where a signal has reached one of them.
        """
        return STOP.together(lambda: self._generate(requests))

    @property
    def on_ended(self) -> Callable[[Sequence[Ended]], None] | None:
        """That of the engine inside; see :class:`app.engines.engine.RolloutEngine`."""
        return getattr(self.engine, "on_ended", None)

    @on_ended.setter
    def on_ended(self, listener: Callable[[Sequence[Ended]], None] | None) -> None:
        self.engine.on_ended = listener

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        try:
            return self.engine.generate(requests)
        except EngineFailure as failure:
            self.restart(failure)
            try:
                return self.engine.generate(requests)
            except EngineFailure as second:
                raise self._given_up(failure, second) from second

    @property
    def last_sync_bytes(self) -> int:
        """What the last sync handed over; 0 for an engine that shares the policy's weights."""
        return getattr(self.engine, "last_sync_bytes", 0)

    def close(self) -> None:
        """Closes the engine; safe to call again."""
        self.engine.close()

    def restart(self, failure: EngineFailure) -> None:
        """Closes, starts and synchronises the engine, with the policy's current weights.

        Args:
            failure: why.

        Raises:
            EngineFailure: it fails again.
            StopRequested: the run is to stop, and needs no engine any more.
        """
        assert self._module is not None, "start comes first"
        STOP.check()  # a signal to the whole job may have ended the engine, too
        log.warning("The rollout engine failed (%s): %s. Restarting it.", failure.kind, failure)
        self.restarts += 1
        self.engine.close()
        try:
            self.engine.start(self._module)
            self.engine.sync(self._module)
        except EngineFailure as second:
            raise self._given_up(failure, second) from second

    @staticmethod
    def _given_up(first: EngineFailure, second: EngineFailure) -> EngineFailure:
        return EngineFailure(
            second.kind, f"the rollout engine failed again after a restart: {second} (the first failure: {first})"
        )
