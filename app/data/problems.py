"""The row type that every data source yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.grading.thinking import NO_OPEN_THOUGHT, Thinking

Turn = tuple[str, str]
"""Who speaks (``system``, ``user``, ``assistant``), and what."""


@dataclass(frozen=True)
class Problem:
    """One math problem with its gold answer.

    Attributes:
        id: unique within its source.
        problem: the statement, as shown to the model by a prompt template.
        answer: the gold answer, LaTeX or plain, without ``\\boxed``.
        source: the source's name (``gsm8k``, ``math500``, a file's stem …).
        extra: further columns (``level``, ``subject``, ``unit``, ``error`` as a tolerance, ``solution`` …).
        history: the turns of a conversation that ``problem``, its last user's turn, goes on.
    """

    id: str
    problem: str
    answer: str
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class PromptBatch:
    """One rank's share of the prompts of one RL iteration (or one batch of a benchmark).

    Attributes:
        iteration: the RL iteration, from 0 (for a benchmark: the batch's index).
        problems: P problems.
        prompt_ids: P lists of token ids, chat template applied, without padding.
        first_index: position of this rank's first prompt in the iteration's global batch, so that sampling seeds
            do not depend on the number of ranks.
        thinking: how thoughts are marked in their completions, and whether the prompts end in an open one.
    """

    iteration: int
    problems: list[Problem]
    prompt_ids: list[list[int]]
    first_index: int = 0
    thinking: Thinking = NO_OPEN_THOUGHT
