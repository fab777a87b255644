"""What is read from the curves of a run. The plan fixes it before any run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from app.report.plan import Measures


@dataclass(frozen=True)
class Measured:
    """The measures of one run.

    Attributes:
        start: train reward of the first iteration, whose completions come from the policy before any update.
        values: name of :data:`NAMES` → value; see there.
        reached: whether the train reward came to the plan's accuracy; where not, ``iterations`` and ``tokens`` hold the
            whole run's, a lower bound.
    """

    start: float
    values: Mapping[str, float]
    reached: bool


NAMES = {
    "area": "area under the train reward",
    "last": "reward of the last iterations",
    "heldout_start": "held-out before",
    "heldout_middle": "held-out in the middle",
    "heldout_end": "held-out at the end",
    "iterations": "iterations to the accuracy",
    "tokens": "tokens to the accuracy",
}
"""The area is the mean reward of all iterations. The middle of held-out points is the one at half of them."""


def measure(curves: Mapping[str, Sequence[float]], settings: Measures) -> Measured:
    """The measures of a run from its curves ``reward``, ``heldout`` and ``tokens`` (generated so far)."""
    reward, heldout, tokens = curves["reward"], curves["heldout"], curves["tokens"]
    at = first_reaching(reward, settings.accuracy, settings.window)
    iterations = len(reward) if at is None else at
    values = {
        "area": fmean(reward),
        "last": fmean(reward[-settings.last :]),
        "heldout_start": heldout[0],
        "heldout_middle": heldout[len(heldout) // 2],
        "heldout_end": heldout[-1],
        "iterations": float(iterations),
        "tokens": tokens[iterations - 1],
    }
    return Measured(reward[0], values, at is not None)


def first_reaching(reward: Sequence[float], accuracy: float, window: int) -> int | None:
    """Iterations until the mean reward of the last ``window`` of them was at least ``accuracy``; None for never."""
    for end in range(window, len(reward) + 1):
        if fmean(reward[end - window : end]) >= accuracy:
            return end
    return None
