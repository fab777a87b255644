"""Tokenizers made on the spot: the synthetic task's, and subwords learned from a file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.data.json_lines import json_lines
from app.data.rows import MalformedRowError, is_unicode
from app.errors import require_choice
from app.policy.sources import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_KINDS = ("synthetic", "bpe")
TEXT_FIELDS = ("problem", "question", "solution", "answer")
"""Columns of a JSON-lines file that a new subword tokenizer learns from."""
_LONG_WORD = re.compile(r"\S{1000}")
"""Cut where it ends: learning takes a time that grows with the square of a word's length."""
PAD, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class NewTokenizerSettings:
    """A tokenizer made on the spot, the same one each time.

    Attributes:
        corpus: "synthetic", or a JSON-lines file whose ``problem``, ``question``, ``solution`` and ``answer``
            texts a subword tokenizer learns from.
        kind: "synthetic" (the word-level tokenizer of the synthetic task) or "bpe" (byte-level subwords with
            ChatML as chat template).
        vocab_size: largest vocabulary of "bpe", special tokens included; the synthetic one's is fixed.
    """

    corpus: str = "synthetic"
    kind: Literal["synthetic", "bpe"] = "synthetic"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        require_choice(self.kind, TOKENIZER_KINDS, "policy.tokenizer.kind")
        if self.kind == "synthetic" and self.corpus != "synthetic":
            refuse(
                "the synthetic tokenizer has no corpus of its own; did you mean kind: bpe?",
                "tokenizer.corpus",
            )
        if self.kind == "synthetic" and self.vocab_size is not None:
            refuse("the synthetic tokenizer's vocabulary is fixed; leave this out", "tokenizer.vocab_size")
        if self.kind == "bpe" and self.corpus == "synthetic":
            refuse("kind: bpe learns from a JSON-lines file; give its path", "tokenizer.corpus")
        if self.kind == "bpe" and self.vocab_size is not None and self.vocab_size < 260:
            refuse(
                f"256 bytes and 3 special tokens need at least 260, got {self.vocab_size}",
                "tokenizer.vocab_size",
            )


def new_tokenizer(settings: NewTokenizerSettings) -> "PreTrainedTokenizerFast":
    """The tokenizer that ``settings`` describe; it pads on the left and has end and pad tokens.

    Raises:
        ConfigurationError: a row of the corpus cannot be read, or none has a text.
    """
    if settings.kind == "synthetic":
        from app.data.synthetic import build_tokenizer

        return build_tokenizer()
    return _train_subwords(Path(settings.corpus).expanduser(), settings.vocab_size or 4096)


def _train_subwords(corpus: Path, vocab_size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE in which every digit is a token, with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _texts(corpus: Path) -> Iterator[str]:
    found = False
    for number, row in json_lines(corpus):
        if isinstance(row, MalformedRowError):
            refuse(f"{corpus}: row {number}: {row}", "tokenizer.corpus")
        texts = [row[name] for name in TEXT_FIELDS if isinstance(row, dict) and isinstance(row.get(name), str)]
        found = found or any(text.strip() for text in texts)
        for text in texts:
            if not is_unicode(text):
                refuse(f"{corpus}: row {number}: is wrongly encoded (a lone surrogate, or U+FFFD)", "tokenizer.corpus")
            yield _LONG_WORD.sub(r"\g<0> ", text)
    if not found:
        refuse(f"no row of {corpus} has a text in any of {', '.join(TEXT_FIELDS)}", "tokenizer.corpus")
