"""Normalised text → tokens."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from app.grading.vocabulary import (
    CURRENCY,
    FUNCTIONS,
    GROUP_MARK,
    INFINITIES,
    ROW_MARK,
    SPELLED,
    STOP_WORDS,
    VOWELS,
    WORDS,
    names,
)

MAX_EXPONENT = 5000
_CURRENCY_SIGNS = "".join(CURRENCY.values())
_SEPARATED = rf"\d{{1,3}}(?:{GROUP_MARK}\s?\d{{3}})+(?!\d)|\d{{1,3}}(?: \d{{3}})+(?![\d/])|\d{{1,3}}(?:_\d{{3}})+(?!\d)"
_COMMA_GROUPS = r"\d{1,3}(?:,\d{3})+(?!\d)"
_EXPONENT = r"(?:\s?[eE][+-]?\d+(?![\d.]))?"
_DECIMALS = rf"(?:\.\d*)?{_EXPONENT}"
_REST = (
    r"|(?P<text>\\text\s*\{)|\\(?P<command>[A-Za-z]+)|\\(?P<escaped>[{}%|#&_])|(?P<word>[A-Za-zÅ]+)"
    rf"|(?P<currency>[{_CURRENCY_SIGNS}])|(?P<space>\s+)|(?P<power>\*\*)"
    r"|(?P<relation><=|>=|(?<!\d)!=|==|<>|=<)|(?P<char>.)"  # 5!=120: the factorial of 5
)
_PATTERNS = {
    # a comma before exactly three digits: part of the number, or between two members of a list
    True: re.compile(
        rf"(?P<number>(?:{_SEPARATED}|{_COMMA_GROUPS}|\d+){_DECIMALS}|\.\d+{_EXPONENT}){_REST}", re.DOTALL
    ),
    False: re.compile(rf"(?P<number>(?:{_SEPARATED}|\d+){_DECIMALS}|\.\d+{_EXPONENT}){_REST}", re.DOTALL),
}
_RELATIONS = {"<=": "le", ">=": "ge", "!=": "ne", "==": "=", "<>": "ne", "=<": "le", "<": "lt", ">": "gt", "=": "="}
_RELATION_COMMANDS = names("le ge ne approx in lt gt sim equiv notin subset")
_BRACKETS = {"langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉"}
_BRACKETS |= {"lparen": "(", "rparen": ")"}


class UnreadableError(ValueError):
    """The text is not an answer of the kind that was tried."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        kind: ``number``, ``text``, ``command``, ``word`` (a run of letters), ``currency``, ``relation``, ``char``.
        value: the number's digits without separators, the text's content, the command's name, the letters …
        spaced: whether white space stands before it.
        decimal: for a number, whether it is written with a point or an exponent.
    """

    kind: str
    value: str
    spaced: bool = False
    decimal: bool = False

    def number(self) -> Fraction:
        """The exact value of a number token; :class:`UnreadableError` where its exponent is absurd."""
        mantissa, _, exponent = self.value.lower().partition("e")
        if len(exponent) > 6 or abs(int(exponent or 0)) > MAX_EXPONENT:
            raise UnreadableError(f"exponent {exponent} is out of bounds")
        return Fraction(mantissa + "0" if mantissa.endswith(".") else mantissa) * Fraction(10) ** int(exponent or 0)


def tokenize(text: str, commas_group_digits: bool = True) -> list[Token]:
    """The tokens of normalised text.

    Args:
        text: from :func:`app.grading.reading.normalise.normalise`.
        commas_group_digits: whether ``1,234`` is one number; otherwise it is a list of two.
    """
    tokens: list[Token] = []
    position, spaced = 0, False
    pattern = _PATTERNS[commas_group_digits]
    while position < len(text):
        match = pattern.match(text, position)
        assert match is not None  # the last alternative takes any character
        position = match.end()
        if match.lastgroup == "space":
            spaced = True
            continue
        if match.lastgroup == "text":
            end = _closing_brace(text, position)
            content = text[position:end].strip()
            tokens.append(Token("char", ":", spaced) if content == "to" else Token("text", content, spaced))
            position = end + 1
        else:
            tokens.append(_token(match, spaced))
        spaced = False
    return tokens


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def _token(match: re.Match[str], spaced: bool) -> Token:
    kind, value = str(match.lastgroup), match[0]
    if value == "to":
        return Token("char", ":", spaced)
    if kind == "number":
        digits = re.sub(rf"[{GROUP_MARK}\s,_]", "", value)
        return Token("number", digits, spaced, bool(re.search(r"[.eE]", digits.rstrip("."))))
    if kind == "command":
        return _command(match["command"], spaced)
    if kind == "escaped":
        return Token("char", "‖" if match["escaped"] == "|" else "\\" + match["escaped"], spaced)
    if kind == "power":
        return Token("char", "^", spaced)
    if kind == "relation" or value in "<>=":
        return Token("relation", _RELATIONS[value], spaced)
    if value == GROUP_MARK:
        return Token("char", ",", spaced)
    if value == ROW_MARK:
        return Token("command", "row", spaced)
    return Token(kind, value, spaced)


def _command(name: str, spaced: bool) -> Token:
    if name in _RELATION_COMMANDS:
        return Token("relation", name, spaced)
    if name in _BRACKETS:
        return Token("char", _BRACKETS[name], spaced)
    return Token("command", name, spaced)


def expand_words(tokens: list[Token]) -> list[Token]:
    """Runs of letters as functions, spelled-out symbols, or else single letters."""
    return [part for token in tokens for part in (_expand(token) if token.kind in ("word", "text") else [token])]


def _expand(token: Token) -> list[Token]:
    name = SPELLED.get(token.value, token.value)
    if name in FUNCTIONS or name in WORDS:
        return [replace(token, kind="command", value=name)]
    if name in INFINITIES:
        return [replace(token, kind="command", value="infty")]
    if token.kind == "text":
        return [replace(token, kind="word")] if len(name) == 1 else [token]
    for function in ("sqrt", "sin", "cos", "tan", "ln", "log"):
        if name.startswith(function) and len(name) == len(function) + 1:
            return [replace(token, kind="command", value=function), Token("word", name[-1])]
    if _is_english(name):
        raise UnreadableError(f"the word {name!r} in a formula")
    if name.endswith("pi") and len(name) == 3:
        return [replace(token, value=name[0]), Token("command", "pi")]
    return [replace(token, value=letter, spaced=token.spaced and i == 0) for i, letter in enumerate(name)]


def _is_english(name: str) -> bool:
    """Whether a run of letters is a word rather than a product of variables, whose letters stand in order."""
    if name in STOP_WORDS:
        return True
    return len(name) > 3 and name.islower() and list(name) != sorted(name) and not VOWELS.isdisjoint(name)
