"""TeX's infix commands and its environments of aligned lines, as what they mean; clauses at the end of an answer."""

import re

_PIECES = re.compile(r"\\(?:over|choose)(?![A-Za-z])\s*|\\.|[{}]|[^\\{}]+|\\", re.DOTALL)
_INFIX = {"\\over": "\\frac ", "\\choose": "\\binom "}
_LINES = re.compile(r"\\begin\s*\{(aligned|align|align\*|gathered|split)\}(.*?)\\end\s*\{\1\}", re.DOTALL)
_LINE_END = re.compile(r"\\\\(?:\s*\[[^\]]{0,20}\])?")
_RELATION = re.compile(r"=|<|>|\\(?:le|leq|ge|geq|lt|gt|approx|equiv|ne|neq|sim)(?![A-Za-z])")

_NAME = r"(?:[A-Za-z]|\\[a-z]+\s?)(?:_\{?\w\}?)?"
_SET = r"\\in\s*(?:\\mathbb\s*\{?\s*[RZNQC]\s*\}?|\\reals)\s*(?:\^\s*\{?[+*]\}?)?"
_CLAUSE = re.compile(
    rf"[,;\s]\s*(?:(?:where|with)\s+(?P<constant>{_NAME})\s+is\s+(?:an?\s+)?(?:arbitrary\s+|any\s+)?(?:real\s+)?constant"
    rf"|for\s+(?:all|any|every)\s+(?:real\s+)?(?:numbers?\s+)?(?P<variable>{_NAME})\s*(?:{_SET})?"
    rf"|(?:where\s+|for\s+)?(?P<member>{_NAME})\s*{_SET})$"
)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def infix_as_prefix(text: str) -> str:
    """``{a \\over b}`` as ``{\\frac {a}{b}}``, ``{n \\choose k}`` as ``{\\binom {n}{k}}``; linear in the length."""
    if "\\over" not in text and "\\choose" not in text:
        return text
    groups: list[tuple[list[str], list[str]]] = [([], [])]  # for every open group what stands in it, and what led over
    for piece in _PIECES.findall(text):
        parts, head = groups[-1]
        if piece == "{":
            groups.append(([], []))
        elif piece == "}" and len(groups) > 1:
            groups.pop()
            groups[-1][0].append(f"{{{_joined(parts, head)}}}")
        elif piece.strip() in _INFIX and not head:
            head += [_INFIX[piece.strip()], "".join(parts)]
            parts.clear()
        else:
            parts.append(piece)
    return "{".join(_joined(*group) for group in groups)


def _joined(parts: list[str], head: list[str]) -> str:
    inside = "".join(parts)
    return f"{head[0]}{{{head[1]}}}{{{inside}}}" if head else inside


def lines_as_list(text: str) -> str:
    """Aligned lines as members of a list; a line that begins with a relation goes on with the chain before it."""
    return _LINES.sub(lambda match: match[0] if "\\begin" in match[2] else _listed(match[2]), text)


def _listed(body: str) -> str:
    lines = [re.sub(r"(?<!\\)&", " ", line).strip() for line in _LINE_END.split(body)]
    joined = ""
    for line in filter(None, lines):
        joined += line if not joined else f" {line}" if _RELATION.match(line) else f", {line}"
    return f" {joined} "


def without_clause(normalised: str) -> tuple[str, str]:
    """An answer, and the clause at its end that says what one of its letters stands for; empty where there is none.

    Understood are "where c is a constant", "for all x" and "c ∈ ℝ", of a letter that the answer has. A clause that
    restricts the answer (to even numbers, say) is none of them.
    """
    plain = _TEXT.sub(r"\1", normalised)
    match = _CLAUSE.search(plain)
    if match is None:
        return normalised, ""
    head, name = plain[: match.start()].rstrip(" ,;"), match["constant"] or match["variable"] or match["member"]
    first_text = normalised.find("\\text")
    if 0 <= first_text < len(head) or name.strip() not in head:
        return normalised, ""
    return head, re.sub(r"[\s{},;]+", "", match[0])
