"""What is read from a run's curves."""

import pytest

from app.report.measures import first_reaching, measure
from app.report.plan import Measures

CURVES = {"reward": [0.2, 0.4, 0.6, 0.8], "heldout": [0.3, 0.5, 0.7], "tokens": [10.0, 25.0, 31.0, 50.0]}


def test_every_measure_by_hand() -> None:
    found = measure(CURVES, Measures(accuracy=0.5, last=2, window=2))
    assert found.start == 0.2
    assert found.values == pytest.approx(
        {
            "area": 0.5,
            "last": 0.7,
            "heldout_start": 0.3,
            "heldout_middle": 0.5,
            "heldout_end": 0.7,
            "iterations": 3,
            "tokens": 31,
        }
    )
    assert found.reached


def test_an_accuracy_that_is_never_reached_gives_the_whole_run_and_says_so() -> None:
    found = measure(CURVES, Measures(accuracy=0.75, window=2))
    assert not found.reached
    assert (found.values["iterations"], found.values["tokens"]) == (4, 50)


def test_an_accuracy_counts_whole_windows_alone() -> None:
    assert first_reaching([1.0, 0.0, 1.0, 1.0], 0.9, window=2) == 4
    assert first_reaching([1.0, 0.0, 1.0, 1.0], 0.9, window=1) == 1
    assert first_reaching([1.0], 0.9, window=2) is None
