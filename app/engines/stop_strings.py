"""Stop strings: which token of a completion completes one of them, found by decoding only the newest tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Looks for strings in the decoded text of growing completions; special tokens count as text.

    Args:
        tokenizer: decodes.
        strings: at least one, none empty.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        # A token adds at least a byte; a few more tokens keep clear of how decoders treat the first ones.
        self.reach = max(len(string.encode()) for string in self.strings) + 4

    def tail_start(self, checked: int) -> int:
        """The first token that matters once ``checked`` tokens were looked at: strings may begin before those
        that are new."""
        return max(0, checked - self.reach)

    def first_ends(self, tails: Sequence[Sequence[int]], checked: int) -> list[int | None]:
        """For each row the smallest length beyond ``checked`` at which its text holds a string, if there is one.

        Args:
            tails: token ids of completions from :meth:`tail_start` on.
            checked: tokens at the start of ``tails`` that were looked at before.
        """
        fresh = [index for index, tail in enumerate(tails) if len(tail) > checked]
        texts = self._decode([tails[index] for index in fresh])
        ends: list[int | None] = [None] * len(tails)
        for index, text in zip(fresh, texts, strict=True):
            if self._found(text):
                ends[index] = self._first_end(tails[index], checked)
        return ends

    def _first_end(self, tail: Sequence[int], checked: int) -> int | None:
        lengths = range(checked + 1, len(tail) + 1)
        texts = self._decode([tail[:length] for length in lengths])
        return next((length for length, text in zip(lengths, texts, strict=True) if self._found(text)), None)

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        if not rows:  # transformers would give one empty text
            return []
        return self.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _found(self, text: str) -> bool:
        return any(string in text for string in self.strings)
