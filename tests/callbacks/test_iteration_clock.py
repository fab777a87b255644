"""What counts as the time of an iteration."""

import pytest

from callbacks.iteration_clock import IterationClock


def test_the_clock_of_iterations_stands_still_in_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, 12.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr("callbacks.iteration_clock.time.perf_counter", lambda: next(moments))
    clock = IterationClock()
    clock.start()
    clock.pause()
    clock.resume()
    assert clock.lap() == 7.0  # from 10 to 20 without 12 to 15
    assert clock.lap() == 1.0
