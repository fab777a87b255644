"""What a reward function is: an object with a ``name`` that maps samples to as many scores.

None says that it cannot score a sample. The classes beside this file are constructed from a configuration
(``class_path`` and ``init_args``), by their bare names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.data.problems import Problem
from app.errors import CommonError

Scores = list[float | None]


@dataclass(frozen=True)
class RewardSample:
    """One completion as reward functions see it.

    Attributes:
        problem: the problem with its gold answer and its row's further columns.
        completion: the generated text, without special tokens.
        n_tokens: generated tokens, the end token included.
        finish_reason: "stop", or "length" where ``max_new_tokens`` cut it off.
        max_new_tokens: the limit it was generated under.
    """

    problem: Problem
    completion: str
    n_tokens: int
    finish_reason: str
    max_new_tokens: int


@runtime_checkable
class RewardFunction(Protocol):
    """Scores samples. ``name`` labels its metrics: ``rewards/<name>/mean``."""

    name: str

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        """One score a sample, in order; None where it cannot be scored."""
        ...


class RewardError(CommonError):
    """A reward function failed or returned something other than scores."""
