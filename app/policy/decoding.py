"""From sampled token ids to text in which no token vanishes, and the ids that a tokenizer knows nothing of."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from app.engines.engine import SamplingSettings

_CHARACTER_BYTES = 4
"""A character of UTF-8 has no more."""


def unknown_mark(token_id: int) -> str:
    """What stands in a text for an id that the tokenizer does not know."""
    return f"<|unknown:{token_id}|>"


def decode_completions(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]], end_token_ids: Sequence[int]
) -> list[str]:
    """The texts of completions without the token that ended them.

    Every other special token stands in the text as it is written, and an id beyond the tokenizer's (a model's
    embeddings often have more rows than its tokenizer has tokens) as :func:`unknown_mark`: left out, ``\\boxed{`` and
    ``2}`` with such a token between would read as the answer 2.
    """
    known, ends = _known_ids(tokenizer, len(tokenizer)), frozenset(end_token_ids)
    bodies = [row[:-1] if row and row[-1] in ends else row for row in rows]
    plain = [index for index, row in enumerate(bodies) if known.issuperset(row)]
    texts = dict(zip(plain, _decode(tokenizer, [bodies[index] for index in plain]), strict=True))
    return [texts[index] if index in texts else _marked(tokenizer, row, known) for index, row in enumerate(bodies)]


def count_unknown(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]]) -> int:
    """How many of the ids the tokenizer does not know."""
    known = _known_ids(tokenizer, len(tokenizer))
    return sum(token not in known for row in rows for token in row)


def unknown_token_ids(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> tuple[int, ...]:
    """The ids below ``vocab_size`` that the tokenizer does not know, ascending."""
    known = _known_ids(tokenizer, len(tokenizer))
    return tuple(token for token in range(vocab_size) if token not in known)


def forbidden_ids(
    sampling: "SamplingSettings", tokenizer: "PreTrainedTokenizerBase", policy: "PreTrainedModel"
) -> tuple[int, ...]:
    """The ids of the policy's vocabulary that an engine never draws under these settings."""
    if not sampling.forbid_unknown_tokens:
        return ()
    return unknown_token_ids(tokenizer, policy.config.get_text_config().vocab_size)


def token_texts(tokenizer: "PreTrainedTokenizerBase", row: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; put together they are the text of the whole row.

    The bytes of one character may be several tokens: all but the last of them add nothing. An id that the tokenizer
    does not know is an :func:`unknown_mark`.
    """
    known = _known_ids(tokenizer, len(tokenizer))
    texts: list[str] = []
    for is_known, run in groupby(row, key=known.__contains__):
        ids = list(run)
        texts += _pieces(tokenizer, ids) if is_known else map(unknown_mark, ids)
    return texts


def _pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """Each token is decoded behind the one before it, for a tokenizer may strip the space that begins a text."""
    pieces: list[str] = []
    before = read = 0
    prefix = ""
    for index in range(len(ids)):
        (text,) = _decode(tokenizer, [ids[before : index + 1]])
        pending = index + 1 - read
        if text.endswith("\ufffd") and pending < _CHARACTER_BYTES and index + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(
            text[len(prefix) :] if text.startswith(prefix) else _decode(tokenizer, [ids[read : index + 1]])[0]
        )
        before, read = read, index + 1
        (prefix,) = _decode(tokenizer, [ids[before:read]])
    return pieces


@lru_cache(maxsize=4)
def _known_ids(tokenizer: "PreTrainedTokenizerBase", size: int) -> frozenset[int]:
    """Vocabularies have holes: their size does not tell. It is an argument because tokens can be added."""
    return frozenset(tokenizer.get_vocab().values())


def _marked(tokenizer: "PreTrainedTokenizerBase", row: Sequence[int], known: frozenset[int]) -> str:
    parts: list[str] = []
    for is_known, run in groupby(row, key=known.__contains__):
        ids = list(run)
        parts += _decode(tokenizer, [ids]) if is_known else map(unknown_mark, ids)
    return "".join(parts)


def _decode(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]]) -> list[str]:
    if not rows:  # transformers would give one empty text
        return []
    return tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
