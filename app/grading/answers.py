"""The answer of a completion: the last complete ``\\boxed{…}`` outside the model's thinking."""

import re

_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
# TeX boxes one token without braces; models mean the whole word: \boxed 42
_UNBRACED = re.compile(r"\s*([^\s${}\\]+)")


def strip_thinking(completion: str) -> str:
    """The completion without ``<think>…</think>``.

    A closing tag without an opening one ends a thought that the prompt began; an opening tag without a closing one
    begins a thought that was cut off, and nothing after it counts.
    """
    kept: list[str] = []
    depth, start = 0, 0
    for tag in _THINK.finditer(completion):
        if tag[1]:
            if depth == 0:
                kept.clear()
            depth = max(depth - 1, 0)
        else:
            if depth == 0:
                kept.append(completion[start : tag.start()])
            depth += 1
        start = tag.end()
    if depth == 0:
        kept.append(completion[start:])
    return "".join(kept)


def boxed_answers(text: str) -> list[str]:
    """The contents of every complete box, in the order in which they close; linear in the text's length.

    Escaped braces (``\\{``) do not count; a box that is never closed is no box.
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
            if start is not None:
                found.append(text[start : token.start()])
        elif token[0] in ("\\boxed", "\\fbox"):
            box_at = token.end()
            unbraced = _UNBRACED.match(text, box_at, box_at + 100)
            if unbraced:
                found.append(unbraced[1].rstrip(".,;"))
                box_at = -1
    return found


def extract_answer(completion: str) -> str | None:
    """The text in the last box outside thinking, stripped; None where there is no box or the box is empty."""
    boxes = boxed_answers(strip_thinking(completion))
    answer = boxes[-1].strip() if boxes else ""
    return answer or None
