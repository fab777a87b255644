"""One spelling for one thing: Unicode, spacing, fonts and synonyms of LaTeX, before an answer is read.

What comes out holds no zero-width, control or full-width characters, no math delimiters, no size or font commands
other than ``\\text{…}``, and one command where LaTeX has several.
"""

import re
import unicodedata

from app.grading.reading.layout import infix_as_prefix, lines_as_list
from app.grading.vocabulary import (
    BEFORE_DELIMITERS,
    CURRENCY,
    DISCARDED_ARGUMENT,
    DROPPED,
    FONTS,
    GROUP_MARK,
    ROW_MARK,
    SYMBOLS,
    SYNONYMS,
    TEXT,
)

_RAISED_SIGNS, _LOWERED_SIGNS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_SUPERSCRIPTS = str.maketrans(_RAISED_SIGNS, "0123456789+-ni")
_SUBSCRIPTS = str.maketrans(_LOWERED_SIGNS, "0123456789+-n")
_TRANSLATION = str.maketrans(SYMBOLS)
_RAISED = re.compile(f"[{_RAISED_SIGNS}]+")
_LOWERED = re.compile(f"[{_LOWERED_SIGNS}]+")
_RAISED_FRACTION = re.compile(f"([{_RAISED_SIGNS}]+)⁄([{_LOWERED_SIGNS}]+)")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")

_COMMAND = re.compile(r"\\([A-Za-z]+)\*?\s*")
_SPACE_COMMAND = re.compile(r"\\[,;:> \n\t]|~")
_ALIGNED = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|equation|split|gathered|gather|center)\*?\}")
_ROMAN = re.compile(r"\\mathrm\s*\{([^{}]*)\}")
_UNIT_LETTERS = "msghLNJWVKACFTHÅ"
_ENDS_IN_NUMBER = re.compile(
    r"(?:(?<![\w^_.])(?<![\^_]\{)\d[\d.,]*|10\s*\^\s*\{?\s*-?\d+\s*\}?|\}\s*\{\s*\d+\s*\}|\d[\s~]*\\mu|\\(?:text|mathrm)\s*\{[^{}]*\})[\s~]*$"
)
_VECTOR = r"\\(?:vec|mathbf|boldsymbol|bm|hat)\s*\{?\s*[A-Za-z]\s*\}?(?:_\{?\w\}?)?"
_UNIT_VECTOR = re.compile(r"\\hat\s*(?:\{\s*(?:\\mathbf\s*)?\{?\s*\\?([ijk])(?:math)?\s*\}?\s*\}|\s([ijk])\b)")
_CROSS = re.compile(rf"(?<=\W)({_VECTOR}\s*)\\times(?=\s*{_VECTOR})")
_DEGREE = re.compile(
    r"(?:\{\s*\})?\^\s*\{\s*\\(?:circ|degree)(?![A-Za-z])\s*\}|(?:\{\s*\})?\^\s*\\(?:circ|degree)(?![A-Za-z])"
)
_TEXT_NUMBER = re.compile(rf"\\text\s*\{{\s*([-+]?\d[\d.,]*|[{''.join(CURRENCY.values())}])\s*\}}")
_LIBRARY_PREFIX = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.(?=[a-z])")
_ENVIRONMENT_ROW = re.compile(r"matrix|array|cases")


_REWRITES = [
    (_TEXT_NUMBER, r"\1"),
    (re.compile(r"\\text\s*\{\s*(?:minus|negative)\s*\}\s*(?=[\d\\])"), "-"),
    (re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,]*)\s+([^{}]*)\}"), r"\1 \\text{\2}"),  # \text{17 students}
    (re.compile(r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}"), r"\\text{\1/\2}"),
    # (mod 3), \bmod 3 and \text{ mod } 3 as \pmod 3
    (re.compile(r"\(\s*(?:\\text\s*\{\s*mod\s*\}|\\mod|mod(?=[\s\d]))\s*([^()]*)\)"), r"\\pmod \1"),
    (re.compile(r"\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*(\w*)\s*\)?\s*\}|\bmod(?=\s+\d)"), r"\\pmod \1"),
    # ]a,b[ as (a,b)
    (re.compile(r"(^|\\(?:cup|cap|in|setminus) |[={])\s*\]([^][,]*,[^][]*)(?=[][])"), r"\1(\2"),
    (re.compile(r"([(\[][^][,()]*,[^][()]*)\["), r"\1)"),
    (re.compile(r"(?<=\d)\s*[xX]\s*10\s?(?=\^)"), r"\\times 10"),
    (re.compile(r"(\d*\.\d{0,20}?)(\d)\2\2\d{0,20}(?:\.\.\.|\s*\\[lc]?dots\s?)"), r"\1\\overline{\2}"),
    (re.compile(r"(?<=[.\d])\\dot\s*\{(\d)\}"), r"\\overline{\1}"),
    (re.compile(r"\\checkmark\s?|^\s*[*`]+|[*`]+\s*$"), ""),
]


def normalise(text: str) -> str:
    """The text in the spelling described above; linear in its length."""
    text = _LIBRARY_PREFIX.sub("", _plain_characters(text))
    text = infix_as_prefix(_latex_synonyms(_delimiters(lines_as_list(text))))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


def _plain_characters(text: str) -> str:
    """Unicode signs as LaTeX, compatibility forms as plain characters, invisible characters removed."""
    text = re.sub(r"\\(?:AA|angstrom)(?![A-Za-z])", "Å", text)
    text = _RAISED_FRACTION.sub(_raised_fraction, _VULGAR.sub(_vulgar_fraction, text))
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).translate(_TRANSLATION)
    return "".join(map(_visible, text)).strip()


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _raised_fraction(match: re.Match[str]) -> str:
    return f"\\frac{{{match[1].translate(_SUPERSCRIPTS)}}}{{{match[2].translate(_SUBSCRIPTS)}}}"


def _visible(character: str) -> str:
    if character.isascii():
        return character if character >= " " else " "
    kind = unicodedata.category(character)
    if kind in ("Cf", "Cc", "Cs", "Mn") or character == "\ufffd":
        return ""
    return " " if kind in ("Zs", "Zl", "Zp") else character


def _delimiters(text: str) -> str:
    """Math delimiters removed; currency, thousands separators and degrees marked."""
    if _ENVIRONMENT_ROW.search(text):
        text = re.sub(r"\\\\(?:\s*\[[^\]]{0,20}\])?", ROW_MARK, text)
    else:
        text = re.sub(r"\\\\(?=[A-Za-z{}$%])", r"\\", text)  # escaped twice, as in JSON
    text = text.replace(r"\$", CURRENCY["$"])
    if text.count("$") == 1:  # no delimiter: those come in pairs
        text = re.sub(r"\$(?=\s*[-+]?[\d.])|(?<=\d)\$", CURRENCY["$"], text)
    text = re.sub(r"\$+|\\[()\[\]]", " ", text)
    for sign in "€£¥₹":
        text = text.replace(sign, CURRENCY[sign])
    text = re.sub(r"\\(?:pounds|textsterling)(?![A-Za-z])", CURRENCY["£"], text)
    text = re.sub(r"\\(?:euro|texteuro)(?![A-Za-z])", CURRENCY["€"], text)
    text = re.sub(r"\s*\{\s*,\s*\}\s*|,\s*\\!\s*|\\!\s*,\s*", GROUP_MARK, text)
    text = re.sub(r"\{\s*([:.])\s*\}", r"\1", text)
    text = text.replace(r"\!", "")
    text = _SPACE_COMMAND.sub(" ", text)
    text = _DEGREE.sub(r"\\degree ", text)
    return _ALIGNED.sub(" ", text)


def _latex_synonyms(text: str) -> str:
    """One command where LaTeX has several; fonts and sizes removed."""
    text = re.sub(r"\\rm\s*\{", r"\\mathrm{", re.sub(r"\{\s*\\rm\s+([^{}]*)\}", r"\\mathrm{\1}", text))
    text = _CROSS.sub(r"\1\\cross ", " " + _ROMAN.sub(_roman, text))
    text = _UNIT_VECTOR.sub(r"{\1\2}", text)
    pieces: list[str] = []
    position = 0
    for command in _COMMAND.finditer(text):
        if command.start() < position:
            continue
        pieces.append(text[position : command.start()])
        replacement, position = _replace_command(text, command)
        pieces.append(replacement)
    pieces.append(text[position:])
    return "".join(pieces)


def _roman(match: re.Match[str]) -> str:
    """Upright single letters and digits are symbols, but a unit's after a number; longer upright words are text."""
    inside = _SPACE_COMMAND.sub(" ", match[1]).strip()
    if len(inside) == 1 or inside.isdigit():
        start = match.start()
        unit = inside in _UNIT_LETTERS and _ENDS_IN_NUMBER.search(match.string, max(start - 40, 0), start)
        leading = match[1][:1] in ("~", " ", "\\") and inside.isalpha()
        if leading or unit:
            return f"\\text{{{inside}}}"
        return " d" if inside == "d" else f"{{{inside}}}"
    return f"\\text{{{inside}}}"


def _replace_command(text: str, command: re.Match[str]) -> tuple[str, int]:
    """The replacement of one command, and where to go on."""
    name, end = command[1], command.end()
    if name in DISCARDED_ARGUMENT:
        return " ", _skip_argument(text, end)
    if name in TEXT:
        return "\\text", end
    if name in FONTS:
        return "", end
    if name in DROPPED:
        if name in BEFORE_DELIMITERS:  # no space, so that f\left(x\right) is f(x)
            return "", end + (text[end : end + 1] == ".")
        return " ", end
    name = SYNONYMS.get(name, name)
    if not name[0].isalpha():
        return ("\\" + name if name in "{}" else name), end
    return f"\\{name} ", end


def _skip_argument(text: str, start: int) -> int:
    """Where the braced argument, or else the single character, at ``start`` ends."""
    if text[start : start + 1] != "{":
        return start + 1
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return len(text)
