"""Where the time of iterations goes that no phase accounts for."""

import time


class IterationClock:
    """Seconds from the end of one iteration to the end of the next, evaluations apart."""

    def __init__(self) -> None:
        self._since = self._paused = time.perf_counter()

    def start(self) -> None:
        """The first iteration begins."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """An evaluation begins."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """It has ended, and its time does not count."""
        self._since += time.perf_counter() - self._paused

    def lap(self) -> float:
        """An iteration has ended: its seconds."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
