"""Prompts, ends and unknown ids with Qwen's own ranks, where they are: ``pip install --no-deps dashscope==2.0.2``."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.data.prompts import PromptEncoder, PromptSettings
from app.data.shown_prompt import show_prompt
from app.grading.answers import extract_answer
from app.grading.matching import judge
from app.policy.decoding import decode_completions, unknown_token_ids
from app.policy.models import end_token_ids
from tests.data import templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGE = importlib.util.find_spec("dashscope")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="needs Qwen's ranks: pip install --no-deps dashscope==2.0.2"),
]
# As Qwen2's tokenizer cuts words, and its first special tokens.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 151_936
"""Of the embeddings of the small Qwen2.5 models."""


@lru_cache(maxsize=1)
def ranks() -> object:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    file = Path(PACKAGE.origin).parent / "resources" / "qwen.tiktoken"
    return TikTokenConverter(vocab_file=str(file), pattern=WORDS, extra_special_tokens=SPECIAL).converted()


def qwen(eos: str, chat_template: str = templates.OPENS_A_THOUGHT) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=ranks(), eos_token=eos, additional_special_tokens=SPECIAL, chat_template=chat_template
    )


def test_the_base_models_tokenizer_ends_turns_as_the_instruct_models() -> None:
    assert end_token_ids(qwen("<|endoftext|>")) == (151643, 151645)
    assert end_token_ids(qwen("<|im_end|>")) == (151645,)


def test_a_prompt_is_shown_token_by_token() -> None:
    tokenizer = qwen("<|im_end|>")
    encoder = PromptEncoder(PromptSettings(style="deepseek_r1"), tokenizer)
    shown = show_prompt(encoder.ids("What is 12+7?"), tokenizer, end_token_ids(tokenizer), encoder.thinking)
    assert shown.tokens[:11] == ["<|im_start|>", "user", "\n", "What", " is", " ", "1", "2", "+", "7", "?\n"]
    assert shown.token_ids[:3] == [151644, 872, 198]
    assert shown.opened_thought == "<think>"
    assert shown.end_tokens == ["<|im_end|>"]


def test_an_id_of_the_embeddings_alone_is_no_part_of_an_answer() -> None:
    tokenizer = qwen("<|im_end|>")
    ids = [*tokenizer(r"\boxed{", add_special_tokens=False).input_ids, 151800, *tokenizer("2}").input_ids, 151645]
    (text,) = decode_completions(tokenizer, [ids], (151645,))
    assert text == r"\boxed{<|unknown:151800|>2}"
    assert judge("2", extract_answer(text), {}) == "mismatch"
    assert unknown_token_ids(tokenizer, ROWS) == tuple(range(len(tokenizer), ROWS))
