"""A rollout that is generated in a thread while the policy is trained on the one before it."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from app.engines.faults import EngineFailure
from app.rollout.experience import Rollout

Generate = Callable[[], list[Rollout]]


class RolloutAhead:
    """At most one rollout at a time.

    The thread must not restart an engine that fails: the policy's weights are changing meanwhile. The failure waits
    for :meth:`finish`, which is called between two updates.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._future: Future[list[Rollout]] | None = None
        self._again: Callable[[EngineFailure], list[Rollout]] | None = None

    def start(self, generate: Generate, again: Callable[[EngineFailure], list[Rollout]]) -> None:
        """Begins.

        Args:
            generate: runs in the thread.
            again: makes the rollouts in the caller's thread where ``generate`` met this failure.
        """
        self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._future, self._again = self._thread.submit(generate), again

    def finish(
        self, within: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ) -> list[Rollout]:
        """Waits for the rollout that was begun; empty where there is none.

        Args:
            within: makes a context for the wait alone.

        Raises:
            EngineFailure: of the engine, after its restart.
        """
        if self._future is None or self._again is None:
            return []
        try:
            with within():
                rollouts = self._future.result()
        except EngineFailure as failure:
            rollouts = self._again(failure)
        self._future = None
        return rollouts

    def give_up(self) -> tuple[list[Rollout], bool]:
        """Ends the thread, which an engine that is closed lets go: (a rollout that was complete, whether one was not).

        Whatever error the thread ends with is that of an engine that was closed under it.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        future, self._thread, self._future = self._future, None, None
        if future is None:
            return [], False
        lost = future.cancelled() or future.exception() is not None
        return ([] if lost else future.result()), lost
