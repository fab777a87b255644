"""Prompts, ends and unknown ids with Qwen's and LLaMA-3's own ranks, where they are:
``pip install --no-deps dashscope==2.0.2 llama-models==0.3.0``."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.data.prompts import PromptEncoder, PromptSettings
from app.data.shown_prompt import show_prompt
from app.engines.stop_strings import StopStrings
from app.grading.answers import extract_answer
from app.grading.matching import judge
from app.policy.decoding import decode_completions, unknown_token_ids
from app.policy.models import end_token_ids
from tests.data import templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGE, LLAMA = importlib.util.find_spec("dashscope"), importlib.util.find_spec("llama_models")
pytestmark = pytest.mark.slow
needs_qwen = pytest.mark.skipif(PACKAGE is None, reason="needs Qwen's ranks: pip install --no-deps dashscope==2.0.2")
needs_llama = pytest.mark.skipif(LLAMA is None, reason="needs LLaMA's: pip install --no-deps llama-models==0.3.0")
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


@needs_qwen
def test_the_base_models_tokenizer_ends_turns_as_the_instruct_models() -> None:
    assert end_token_ids(qwen("<|endoftext|>")) == (151643, 151645)
    assert end_token_ids(qwen("<|im_end|>")) == (151645,)


@needs_qwen
def test_a_prompt_is_shown_token_by_token() -> None:
    tokenizer = qwen("<|im_end|>")
    encoder = PromptEncoder(PromptSettings(style="deepseek_r1"), tokenizer)
    shown = show_prompt(encoder.ids("What is 12+7?"), tokenizer, end_token_ids(tokenizer), encoder.thinking)
    assert shown.tokens[:11] == ["<|im_start|>", "user", "\n", "What", " is", " ", "1", "2", "+", "7", "?\n"]
    assert shown.token_ids[:3] == [151644, 872, 198]
    assert shown.opened_thought == "<think>"
    assert shown.end_tokens == ["<|im_end|>"]


@needs_qwen
def test_an_id_of_the_embeddings_alone_is_no_part_of_an_answer() -> None:
    tokenizer = qwen("<|im_end|>")
    ids = [*tokenizer(r"\boxed{", add_special_tokens=False).input_ids, 151800, *tokenizer("2}").input_ids, 151645]
    (text,) = decode_completions(tokenizer, [ids], (151645,))
    assert text == r"\boxed{<|unknown:151800|>2}"
    assert judge("2", extract_answer(text), {}) == "mismatch"
    assert unknown_token_ids(tokenizer, ROWS) == tuple(range(len(tokenizer), ROWS))


# As LLaMA 3's tokenizer cuts words, and its special tokens from 128000 on.
LLAMA_WORDS = WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
LLAMA_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
LLAMA_TURNS = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def llama(eos: str) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=llama_ranks(),
        bos_token=LLAMA_SPECIAL[0],
        eos_token=eos,
        additional_special_tokens=LLAMA_SPECIAL,
        chat_template=LLAMA_TURNS,
    )


@lru_cache(maxsize=1)
def llama_ranks() -> object:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    assert LLAMA is not None
    assert LLAMA.origin is not None
    file = Path(LLAMA.origin).parent / "llama3" / "tokenizer.model"
    return TikTokenConverter(vocab_file=str(file), pattern=LLAMA_WORDS, extra_special_tokens=LLAMA_SPECIAL).converted()


@needs_llama
def test_llamas_turns_begin_and_end_once() -> None:
    assert end_token_ids(llama("<|end_of_text|>")) == (128001, 128009)
    assert end_token_ids(llama("<|eot_id|>")) == (128009,)
    tokenizer = llama("<|eot_id|>")
    ids = PromptEncoder(PromptSettings(style="deepseek_r1"), tokenizer).ids("What is 12345+7?")
    assert ids.count(128000) == 1
    assert ids[-4:] == [128006, 78191, 128007, 271]
    assert [tokenizer.decode([token]) for token in ids if tokenizer.decode([token]).isdigit()] == ["123", "45", "7"]


@needs_llama
def test_llamas_special_tokens_within_a_completion_are_seen() -> None:
    tokenizer = llama("<|eot_id|>")
    four, two = (tokenizer(digit, add_special_tokens=False).input_ids for digit in "42")
    (text,) = decode_completions(tokenizer, [[*four, 128010, *two, 128009]], (128009,))
    assert text == "4<|python_tag|>2"
    assert unknown_token_ids(tokenizer, 128_256) == tuple(range(128_011, 128_256))
    stop = StopStrings(tokenizer, ["<|eom_id|>"])
    assert stop.first_ends([[*four, 128008, *two]], checked=0) == [2]
