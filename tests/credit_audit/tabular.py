"""A language model whose values are known in closed form: logits are a table of the last token.

Rewards are those of an automaton that reads the tokens. So the expected reward behind a prefix depends on its last
token, the automaton's state and the tokens that are left, and dynamic programming gives it exactly; autograd through
it gives the exact policy gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from app.data.problems import Problem, PromptBatch
from app.rewards.reward import RewardSample

END = 1
FIRST = 5
"""Tokens below are special ones of the tests' tokenizer, which the table never draws, :data:`END` apart."""


class TabularConfig(PreTrainedConfig):
    model_type = "tabular"

    def __init__(self, vocab_size: int = 72, **rest: Any) -> None:
        self.vocab_size = vocab_size
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 1, 1, 1
        self.max_position_embeddings = 512
        super().__init__(**rest)


class TabularModel(PreTrainedModel):
    """Bigrams: ``table[last token]`` are the logits of the next one."""

    config_class = TabularConfig

    def __init__(self, config: TabularConfig, table: Tensor) -> None:
        super().__init__(config)
        self.table = torch.nn.Parameter(table)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        logits = self.table[input_ids[:, -logits_to_keep:]]
        if past_key_values is not None:  # a cache that is asked to reorder wants to have seen something
            batch, length = input_ids.shape
            empty = logits.new_zeros(batch, 1, length, 1)
            past_key_values.update(empty, empty, 0)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


Step = Callable[[int, int], int]
"""(state of the automaton, token) → state."""


@dataclass
class Tabular:
    """Model, automaton and reward.

    Attributes:
        model: see there.
        drawn: the tokens that it draws, :data:`END` last.
        step: of the automaton, which begins in state 0 behind the prompt.
        rewards: by the automaton's last state.
        limit: tokens of a completion.
    """

    model: TabularModel
    drawn: list[int]
    step: Step
    rewards: list[float]
    limit: int

    name = "automaton"

    def state(self, tokens: Sequence[int]) -> int:
        state = 0
        for token in tokens:
            state = state if token == END else self.step(state, token)
        return state

    def __call__(self, samples: Sequence[RewardSample]) -> list[float | None]:
        """The reward function: completions are ``w<i>`` words."""
        return [self.rewards[self.state([int(word[1:]) for word in each.completion.split()])] for each in samples]

    def values(self) -> dict[tuple[int, int, int], Tensor]:
        """(tokens left, last token, state) → V, differentiable in the table."""
        log_probs = self.model.table.log_softmax(-1)
        states = range(len(self.rewards))
        found = {(0, last, state): torch.tensor(self.rewards[state]) for last in self.drawn for state in states}
        for left in range(1, self.limit + 1):
            for last in self.drawn:
                chances = log_probs[last, self.drawn].exp()
                for state in states:
                    found[left, last, state] = sum(
                        chance * self._after(found, left, state, token)
                        for chance, token in zip(chances, self.drawn, strict=True)
                    )
        return found

    def _after(self, found: dict[tuple[int, int, int], Tensor], left: int, state: int, token: int) -> Tensor:
        if token == END:
            return torch.tensor(self.rewards[state])
        return found[left - 1, token, self.step(state, token)]

    def value(self, values: dict[tuple[int, int, int], Tensor], prompt: Sequence[int], prefix: Sequence[int]) -> float:
        """V behind ``prefix``."""
        state = self.state(prefix)
        if prefix and prefix[-1] == END:
            return self.rewards[state]
        return float(values[self.limit - len(prefix), [*prompt, *prefix][-1], state])


def random_tabular(seed: int = 0, words: int = 4, limit: int = 12) -> Tabular:
    """Random bigrams, and a reward for the sum of the words modulo 3: every token matters, some more than others."""
    drawn = [*range(FIRST, FIRST + words), END]
    table = torch.full((72, 72), -30.0)
    generator = torch.Generator().manual_seed(seed)
    for last in (*drawn, 2):
        table[last, drawn] = torch.randn(len(drawn), generator=generator)
        table[last, END] -= 1.0
    return Tabular(
        TabularModel(TabularConfig(), table), drawn, lambda state, token: (state + token) % 3, [0, 0.5, 1], limit
    )


def deciding_tabular(limit: int = 10) -> Tabular:
    """Idle words (5), until one decides: 6 for the reward, 7 against it; then idle words (8) until the end."""
    table = torch.full((72, 72), -30.0)
    table[5, [5, 6, 7]] = torch.tensor([1.0, 0.0, 0.0])
    table[[6, 7, 8]] = table[5].new_full((72,), -30.0)
    for last in (6, 7, 8):
        table[last, [8, END]] = torch.tensor([1.0, 0.0])
    model = TabularModel(TabularConfig(), table)
    return Tabular(model, [5, 6, 7, 8, END], lambda state, token: {6: 1, 7: 2}.get(token, state), [0.5, 1, 0], limit)


def prompts(count: int, last: int = FIRST) -> PromptBatch:
    """Prompts that differ in what the model does not look at."""
    problems = [Problem(f"p{index}", "?", "1") for index in range(count)]
    return PromptBatch(0, problems, [[FIRST + index % 4, last] for index in range(count)])
