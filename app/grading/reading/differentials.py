"""Letters that act on the one after them: differentials and increments. ``dy/dx`` is no quotient of products."""

from app.grading.reading.lexer import Token
from app.grading.reading.splitting import group_end
from app.grading.vocabulary import GREEK

_OPERATORS = frozenset(("Delta", "partial", "nabla"))


def mark_differentials(tokens: list[Token]) -> list[Token]:
    """Tokens with ``\\Delta x`` and ``\\partial x`` as one letter, and ``dx`` where it stands above or below a bar.

    Args:
        tokens: with runs of letters as single letters.
    """
    quotients = [range_ for index in range(len(tokens)) for range_ in _differential_quotient(tokens, index)]
    marked: list[Token] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        operates = token.kind == "command" and token.value in _OPERATORS
        differential = _is_d(tokens, index) and any(index in part for part in quotients)
        if (operates or differential) and _is_letter(tokens, index + 1):
            marked.append(Token("word", f"{token.value}:{tokens[index + 1].value}", token.spaced))
            index += 1
        elif differential:
            marked.append(Token("word", "d:", token.spaced))
        else:
            marked.append(token)
        index += 1
    return marked


def _differential_quotient(tokens: list[Token], index: int) -> list[range]:
    """The numerator's and the denominator's indices, where the token at ``index`` divides two differentials."""
    if tokens[index].kind == "command" and tokens[index].value == "frac":
        top = range(index + 1, group_end(tokens, index + 1))
        bottom = range(top.stop, group_end(tokens, top.stop))
        first, second = (part.start + (part.start < part.stop - 1) for part in (top, bottom))
    elif tokens[index].kind == "char" and tokens[index].value == "/":
        first, second = index - 2 if _is_d(tokens, index - 2) else index - 1, index + 1
        top, bottom = range(max(first, 0), index), range(second, min(second + 2, len(tokens)))
    else:
        return []
    found = _is_d(tokens, first) and _is_d(tokens, second) and _is_letter(tokens, second + 1)
    return [top, bottom] if found else []


def _is_d(tokens: list[Token], index: int) -> bool:
    return 0 <= index < len(tokens) and tokens[index].kind == "word" and tokens[index].value == "d"


def _is_letter(tokens: list[Token], index: int) -> bool:
    if index >= len(tokens):
        return False
    token = tokens[index]
    return token.kind == "word" or (token.kind == "command" and token.value in GREEK)
