"""Text that a renderer of Markdown shows as it is."""

import unicodedata
from collections.abc import Sequence


def literal(text: str) -> str:
    """Markdown that shows ``text`` as it is, in one line: no image that is fetched, no link, no markup, no new row.

    All of ASCII but letters, digits and single spaces becomes character references, whatever it may mean to a renderer.
    """
    lines = text.replace("\r\n", "\n").translate(_LINE_ENDS).split("\n")
    return "<br>".join("".join(map(_character, line)) for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells show their texts as they are."""
    lines = ["| " + " | ".join(map(literal, row)) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


_LINE_ENDS = dict.fromkeys(map(ord, "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), "\n")


def _character(character: str) -> str:
    if character.isascii() and (character.isalnum() or character == " "):
        return character
    if unicodedata.category(character) in ("Cc", "Cs") and character != "\t":  # not to be shown, or not to be stored
        return "\N{REPLACEMENT CHARACTER}"
    return f"&#{ord(character)};" if character.isascii() else character
