"""The answer of a completion: the last complete ``\\boxed{…}`` outside the model's thinking."""

import re

from app.grading.thinking import NO_OPEN_THOUGHT

_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
# TeX boxes one token without braces; models mean the whole word: \boxed 42
_UNBRACED = re.compile(r"\s*([^\s${}\\]+)")
# a word of a sentence about boxes, or its punctuation: "within \boxed as asked", "in `\boxed`."
_PROSE = re.compile(r"\W*(?:[A-Za-z][a-z]+(?:['’-][a-z]+)*)?\W*")
# dots and spaces, however they are set: a place where an answer would go
_BLANK = re.compile(r"(?:[\s.…_~$]|\\(?:[ ,;:!_]|(?:quad|qquad|dots|ldots|cdots)(?![A-Za-z])))*")


def strip_thinking(completion: str) -> str:
    """The completion without its thoughts, see :meth:`app.grading.thinking.Thinking.read`."""
    return NO_OPEN_THOUGHT.read(completion).visible


def boxed_answers(text: str) -> list[str]:
    """The contents of every complete box, in the order in which they close; linear in the text's length.

    Escaped braces (``\\{``) do not count; a box that is never closed is no box, and neither is one that a sentence only
    speaks of: an empty one, or one without braces before a word.
    """
    found: list[str] = []
    opened: list[int | None] = []  # for every open brace, where its box's content begins; None for a plain brace
    box_at = -1
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            opened.append(token.end() if text[box_at : token.start()].strip() == "" and box_at >= 0 else None)
            box_at = -1
        elif token[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and not _BLANK.fullmatch(text, start, token.start()):
                found.append(text[start : token.start()])
        elif token[0] in ("\\boxed", "\\fbox"):
            box_at = token.end()
            unbraced = _UNBRACED.match(text, box_at, box_at + 100)
            if unbraced:
                box_at = -1
                if not _PROSE.fullmatch(unbraced[1]):
                    found.append(unbraced[1].rstrip(".,;"))
    return found


def extract_answer(completion: str) -> str | None:
    """The text in the last box outside thinking, stripped; None where there is no box."""
    boxes = boxed_answers(strip_thinking(completion))
    return boxes[-1].strip() if boxes else None
