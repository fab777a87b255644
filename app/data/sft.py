"""Supervised examples: a prompt, and the completion to be imitated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from app.data.problems import Problem
from app.data.prompts import PromptEncoder
from app.data.rows import nearest
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of tokens that bear no loss, as in ``torch.nn.functional.cross_entropy``."""


@dataclass
class SFTBatch:
    """One rank's share of the examples of one supervised step, padded on the right.

    Attributes:
        input_ids: [B, S] int64, prompt and completion, its end token included.
        attention_mask: [B, S] int64, 1 on real tokens.
        labels: [B, S] int64, ``input_ids`` on the completion, -100 on the prompt and on padding; not shifted.
        prompt_lengths: of each row; they stay on the host, where widths are chosen without waiting for a GPU.
        step: the training step, from 0.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    prompt_lengths: tuple[int, ...]
    step: int = 0

    def to(self, device: torch.device) -> "SFTBatch":
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )


class ExampleEncoder:
    """Makes token ids of problems that carry a solution.

    Args:
        prompts: as in RL, so that the policy is asked there as it was taught here.
        completion_template: what is to be imitated; ``{solution}`` and ``{answer}`` are replaced.
        solution_column: the column of ``Problem.extra`` that holds the solution.
        max_tokens: longest example, prompt and end token included.

    Raises:
        ConfigurationError: the tokenizer has no end token; the template holds neither placeholder.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        completion_template: str = "{solution}",
        solution_column: str = "solution",
        max_tokens: int | None = None,
    ) -> None:
        self.prompts, self.tokenizer = prompts, prompts.tokenizer
        self.template, self.column, self.max_tokens = completion_template, solution_column, max_tokens
        if self.tokenizer.eos_token_id is None:
            raise ConfigurationError("the tokenizer has no end token (eos_token)", key="model.tokenizer")
        if "{solution}" not in completion_template and "{answer}" not in completion_template:
            raise ConfigurationError("holds neither {solution} nor {answer}", key="completion_template")

    def completion(self, problem: Problem) -> str:
        """The text to be imitated. Raises ConfigurationError where the problem lacks a solution or an answer."""
        if "{answer}" in self.template and not problem.answer:
            raise ConfigurationError(f"{problem.source} {problem.id} has no {{answer}}", key="completion_template")
        if "{solution}" not in self.template:
            return self.template.replace("{answer}", problem.answer)
        solution = problem.extra.get(self.column)
        if not isinstance(solution, str):
            raise ConfigurationError(
                f"{problem.source} {problem.id} has no text in its column {self.column!r}; "
                f"{nearest(self.column, problem.extra)}",
                key="solution_column",
            )
        return solution.join(part.replace("{answer}", problem.answer) for part in self.template.split("{solution}"))

    def ids(self, problem: Problem) -> tuple[list[int], list[int]]:
        """Token ids of prompt and completion, its end included, tokenised apart: sampling begins at that seam."""
        completion = self.tokenizer(self.completion(problem), add_special_tokens=False)["input_ids"]
        return self.prompts.encode([problem])[0], completion + self._end_ids

    @cached_property
    def _end_ids(self) -> list[int]:
        """What ends a completion: what the chat template writes behind the assistant's words, or else the EOS token."""
        chat = self.prompts.chat
        return (chat.turn_end if chat else []) or [self.tokenizer.eos_token_id]

    def is_overlong(self, problem: Problem) -> bool:
        """Whether the example has more than ``max_tokens``: cut off, it would teach never to end."""
        return self.max_tokens is not None and sum(map(len, self.ids(problem))) > self.max_tokens

    def batch(self, problems: Sequence[Problem], step: int = 0) -> SFTBatch:
        """The padded batch of these examples."""
        return collate([self.ids(problem) for problem in problems], _padding_id(self.tokenizer), step)


def collate(examples: Sequence[tuple[list[int], list[int]]], padding_id: int, step: int = 0) -> SFTBatch:
    """Pads (prompt ids, completion ids) on the right to the longest. Shapes: see :class:`SFTBatch`."""
    longest = max(len(prompt) + len(completion) for prompt, completion in examples)
    input_ids = torch.full((len(examples), longest), padding_id)
    labels = torch.full((len(examples), longest), IGNORED)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, (prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        labels[row, len(prompt) : end] = torch.tensor(completion)
        attention_mask[row, :end] = 1
    return SFTBatch(input_ids, attention_mask, labels, tuple(len(prompt) for prompt, _ in examples), step)


def _padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Any id does where the mask is 0; EOS stands in for a tokenizer without a pad token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
