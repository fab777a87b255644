"""What a reward function is: an object with a ``name`` that maps samples to as many scores.

None says that it cannot score a sample. The classes beside this file are constructed from a configuration
(``class_path`` and ``init_args``), by their bare names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.data.problems import Problem
from app.errors import CommonError
from app.grading.thinking import NO_OPEN_THOUGHT, Thinking

Scores = list[float | None]


@dataclass(frozen=True)
class RewardSample:
    """One completion as reward functions see it.

    Attributes:
        problem: the problem with its gold answer and its row's further columns.
        completion: the generated text without the token that ended it. Other special tokens stand in it as they are
            written, ids that the tokenizer does not know as ``<|unknown:151800|>``.
        n_tokens: generated tokens, the end token included.
        finish_reason: "stop", or "length" where ``max_new_tokens`` cut it off.
        max_new_tokens: the limit it was generated under.
        thinking: how thoughts are marked in it, and whether its prompt ended in an open one.
    """

    problem: Problem
    completion: str
    n_tokens: int
    finish_reason: str
    max_new_tokens: int
    thinking: Thinking = NO_OPEN_THOUGHT

    @property
    def visible(self) -> str:
        """The completion without its thoughts."""
        return self.thinking.read(self.completion).visible


@runtime_checkable
class RewardFunction(Protocol):
    """Scores samples. ``name`` labels its metrics: ``rewards/<name>/mean``."""

    name: str

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        """One score a sample, in order; None where it cannot be scored."""
        ...


class RewardError(CommonError):
    """A reward function failed or returned something other than scores."""
