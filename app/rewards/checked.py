"""One call of a reward function, with whatever it does or returns that is not scores named in one line."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch

from app.errors import ConfigurationError
from app.rewards.reward import RewardError, RewardFunction, RewardSample, Scores

NEEDED = "a list of one finite number (or None) a sample is needed, in their order"
LONGEST_REASON = 500
"""Characters of an exception's message that are shown."""


def checked_scores(function: RewardFunction, samples: Sequence[RewardSample]) -> Scores:
    """What ``function`` says of ``samples``, as floats and Nones.

    It is called without gradients, and what it may change for the whole process is put back.

    Raises:
        RewardError: it raised, or returned something else than scores; names the function, and the problem where one
            is to blame.
    """
    try:
        with _undisturbed():
            returned = function(samples)
            scores = list(returned) if _is_one_score_each(returned) else None
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        culprit = _first_failure(function, samples)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"
        raise RewardError(f"reward {function.name!r} failed{culprit}: {reason}") from error
    if scores is None:
        raise RewardError(f"reward {function.name!r} returned {_described(returned)}: {NEEDED}")
    if len(scores) != len(samples):
        raise RewardError(
            f"reward {function.name!r} returned {len(scores)} scores for {len(samples)} samples: {NEEDED}"
        )
    return [_checked_score(function, *pair) for pair in zip(samples, scores, strict=True)]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Whether gradients are recorded, the dtype of new tensors and the working folder are afterwards what they were."""
    dtype, folder = torch.get_default_dtype(), os.open(".", os.O_RDONLY)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        os.fchdir(folder)
        os.close(folder)


def _is_one_score_each(returned: Any) -> bool:
    """Whether iterating gives scores: a dictionary gives its keys, a set any order, a matrix rows."""
    if isinstance(returned, str | bytes | Mapping | Set) or getattr(returned, "ndim", 1) != 1:
        return False
    return isinstance(returned, Iterable)


def _described(returned: Any) -> str:
    kind, shape = type(returned).__name__, getattr(returned, "shape", None)
    if returned is None:
        return "None"
    return f"a {kind}" if shape is None else f"a {kind} of shape {list(shape)}"


def _checked_score(function: RewardFunction, sample: RewardSample, score: Any) -> float | None:
    if score is None:
        return None
    score = score.detach() if isinstance(score, torch.Tensor) else score
    # Scalars of numpy and torch are numbers by __float__, which numpy's strings have, too.
    value = math.nan
    if hasattr(score, "__float__") and not isinstance(score, str | bytes):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            value = float(score)
    if not math.isfinite(value):
        shown = " ".join(repr(score).split())[:100]
        where = f"for problem {sample.problem.id!r}"
        raise RewardError(f"reward {function.name!r} returned {shown} {where}: a finite number or None is needed")
    return value


def _first_failure(function: RewardFunction, samples: Sequence[RewardSample]) -> str:
    """Which sample alone makes the function fail, in words."""
    for sample in samples:
        try:
            with _undisturbed():
                function([sample])
        except (Exception, SystemExit):  # noqa: BLE001  the failure itself is being reported
            return f" for problem {sample.problem.id!r}"
    return " for a batch, though for none of its samples alone"
