"""A prompt as the policy reads it, to be looked at: most mistakes in prompts show at the first glance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.grading.thinking import Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 30
"""As many tokens are listed at each end of a long prompt."""


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt, and what its completions end with.

    Attributes:
        text: decoded, special tokens included.
        token_ids: as the policy reads them.
        tokens: the text of each.
        end_tokens: of those that end a completion.
        opened_thought: the marker of the thought that the prompt ends in; empty where it ends in none.
    """

    text: str
    token_ids: list[int]
    tokens: list[str]
    end_tokens: list[str]
    opened_thought: str

    def rows(self) -> list[tuple[str, str]]:
        """(name, value): one line each, line breaks written as ``\\n``."""
        begin = f"within the thought that {self.opened_thought!r} opened" if self.opened_thought else "outside thoughts"
        return [
            ("text", repr(self.text)),
            (f"{len(self.tokens)} tokens", _listed(self.tokens)),
            ("answers", f"begin {begin}, end with {' or '.join(map(repr, self.end_tokens))}"),
        ]

    def __str__(self) -> str:
        return _lines(self.rows())


@dataclass(frozen=True)
class ShownExample:
    """A supervised example: a prompt, and what is to be imitated after it.

    Attributes:
        prompt: decoded, special tokens included.
        target: the same of the tokens that bear loss.
        prompt_tokens, target_tokens: the text of each token.
    """

    prompt: str
    target: str
    prompt_tokens: list[str]
    target_tokens: list[str]

    def __str__(self) -> str:
        parts = [(f"{len(tokens)} tokens", _listed(tokens)) for tokens in (self.prompt_tokens, self.target_tokens)]
        return _lines([("prompt", repr(self.prompt)), parts[0], ("target", repr(self.target)), parts[1]])


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<14}{value}" for name, value in rows)


def _listed(tokens: Sequence[str]) -> str:
    """Tokens, the middle of many left out."""
    listed, middle = [repr(token) for token in tokens], len(tokens) - 2 * SHOWN_TOKENS
    if middle > 0:
        listed = [*listed[:SHOWN_TOKENS], f"… {middle} more …", *listed[-SHOWN_TOKENS:]]
    return " ".join(listed)


def show_example(
    prompt_ids: Sequence[int], target_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> ShownExample:
    """The example of these ids, to be looked at."""
    texts = [tokenizer.decode(list(ids), skip_special_tokens=False) for ids in (prompt_ids, target_ids)]
    tokens = [[_shown(tokenizer, token) for token in ids] for ids in (prompt_ids, target_ids)]
    return ShownExample(texts[0], texts[1], tokens[0], tokens[1])


def show_prompt(
    token_ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    end_token_ids: Sequence[int],
    thinking: Thinking,
) -> ShownPrompt:
    """The prompt of these ids, to be looked at."""
    ids = list(token_ids)
    return ShownPrompt(
        text=tokenizer.decode(ids, skip_special_tokens=False),
        token_ids=ids,
        tokens=[_shown(tokenizer, token) for token in ids],
        end_tokens=[_shown(tokenizer, token) for token in end_token_ids],
        opened_thought=thinking.opened,
    )


def _shown(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token's text, or its name in the vocabulary where it is a part of a character."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))
