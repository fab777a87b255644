"""One spelling for one thing: Unicode, spacing, fonts and synonyms of LaTeX, before an answer is read.

What comes out holds no zero-width, control or full-width characters, no math delimiters, no size or font commands
other than ``\\text{…}``, and one command where LaTeX has several.
"""

import re
import unicodedata

#: Stands for a thousands separator that cannot be a comma of a list (``{,}`` and ``,\!``).
GROUP_MARK = "\ue000"
#: Stands for the end of a matrix row.
ROW_MARK = "\ue010"
#: Stands for a currency sign, whose meaning differs from that of a math delimiter.
CURRENCY = {"$": "\ue001", "€": "\ue002", "£": "\ue003", "¥": "\ue004", "₹": "\ue005"}

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega"
).split()
_SYMBOLS = {
    **dict.fromkeys("−‐‑‒–—―﹣－➖", "-"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•‧", r"\cdot "),
    "÷": r"\div ",
    "∕": "/",
    "⁄": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    "≠": r"\ne ",
    **dict.fromkeys("≈≃≅", r"\approx "),
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    **dict.fromkeys("∅⌀", r"\emptyset "),
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    **dict.fromkeys("°º˚", r"\degree "),
    **dict.fromkeys("′’‘ʹ´", "'"),
    "″": "''",
    **dict.fromkeys("“”„", '"'),
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∣": "|",
    "‖": r"\|",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "ℏ": r"\hbar ",
    "µ": r"\mu ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "→": r"\to ",
    "∶": ":",
    "，": ",",
    "、": ",",
    "；": ";",
    "。": ".",
    "…": r"\ldots ",
    "ϕ": r"\phi ",
    "ε": r"\epsilon ",
    "ı": r"\imath ",
    "⊤": r"\top ",
}
_SYMBOLS.update({chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK)})
_SYMBOLS.update(
    {
        c: f"\\{n} "
        for c, n in zip("ΓΔΘΛΞΠΣΦΨΩ", "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(), strict=True)
    }
)
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_TRANSLATION = str.maketrans({k: v for k, v in _SYMBOLS.items()})
_SCRIPT_RUNS = [
    (re.compile(f"[{''.join(_SUPERSCRIPTS)}]+"), "^", str.maketrans(_SUPERSCRIPTS)),
    (re.compile(f"[{''.join(_SUBSCRIPTS)}]+"), "_", str.maketrans(_SUBSCRIPTS)),
]
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")

_SYNONYMS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "displayfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), "le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), "ge"),
    **dict.fromkeys(("neq",), "ne"),
    **dict.fromkeys(("approxeq", "simeq", "cong"), "approx"),
    **dict.fromkeys(("varnothing", "O"), "emptyset"),
    **dict.fromkeys(("ast", "star"), "times"),
    **dict.fromkeys(("backslash",), "setminus"),
    **dict.fromkeys(("mid", "vert", "lvert", "rvert"), "|"),
    **dict.fromkeys(("Vert", "lVert", "rVert"), "|"),
    **dict.fromkeys(("lbrace",), "{"),
    **dict.fromkeys(("rbrace",), "}"),
    **dict.fromkeys(("lbrack",), "["),
    **dict.fromkeys(("rbrack",), "]"),
    **dict.fromkeys(("varepsilon",), "epsilon"),
    **dict.fromkeys(("varphi",), "phi"),
    **dict.fromkeys(("vartheta",), "theta"),
    **dict.fromkeys(("varrho",), "rho"),
    **dict.fromkeys(("deg", "textdegree", "degrees"), "degree"),
    **dict.fromkeys(("arccosh",), "arcosh"),
    **dict.fromkeys(("imath", "i"), "iunit"),
    **dict.fromkeys(("infin",), "infty"),
    **dict.fromkeys(("land", "wedge"), "and"),
    **dict.fromkeys(("lor", "vee"), "or"),
    **dict.fromkeys(("colon",), ":"),
    **dict.fromkeys(("R",), "reals"),
}
_DROPPED = frozenset(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr mleft mright displaystyle "
    "textstyle scriptstyle limits nolimits bf rm it tt sf sl cal em boldmath normalfont centering hline noindent "
    "quad qquad enspace thinspace medspace thickspace negthinspace hfill allowbreak nobreak ensuremath null strut "
    "vphantom unboldmath large Large small".split()
)
_TEXT = frozenset(
    "text mbox textbf textit textrm textnormal textsf texttt textsc textup emph operatorname hbox mathop".split()
)
_FONTS = frozenset(
    "mathbf boldsymbol bm mathit mathsf mathtt mathcal mathscr mathfrak underline boxed fbox pmb vec hat "
    "textcolor color bold mathbin mathrel mathord cancel smash overrightarrow".split()
)
_DISCARDED_ARGUMENT = frozenset("phantom hphantom hspace vspace label tag color textcolor kern mspace".split())
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?\s*")
_SPACE_COMMAND = re.compile(r"\\[,;:> \n\t]|~")
_ALIGNED = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|align\*|equation|equation\*|split|gathered|center)\}")
_ROMAN = re.compile(r"\\mathrm\s*\{([^{}]*)\}")
_DEGREE = re.compile(
    r"(?:\{\s*\})?\^\s*\{\s*\\(?:circ|degree)(?![A-Za-z])\s*\}|(?:\{\s*\})?\^\s*\\(?:circ|degree)(?![A-Za-z])"
)
_TEXT_NUMBER = re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,]*)\s*\}")
_LIBRARY_PREFIX = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.(?=[a-z])")
_ENVIRONMENT_ROW = re.compile(r"matrix|array|cases")


def normalise(text: str) -> str:
    """The text in the spelling described above; linear in its length."""
    text = _LIBRARY_PREFIX.sub("", _plain_characters(text))
    text = _TEXT_NUMBER.sub(r"\1", _latex_synonyms(_delimiters(text)))
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


def _plain_characters(text: str) -> str:
    """Unicode signs as LaTeX, compatibility forms as plain characters, invisible characters removed."""
    text = _VULGAR.sub(_vulgar_fraction, text)
    for run, mark, table in _SCRIPT_RUNS:
        text = run.sub(lambda match, mark=mark, table=table: f"{mark}{{{match[0].translate(table)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).translate(_TRANSLATION)
    return "".join(map(_visible, text)).strip()


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


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
    text = _ROMAN.sub(_roman, text)
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
    """Upright single letters and digits are symbols; longer upright words are text."""
    inside = _SPACE_COMMAND.sub(" ", match[1]).strip()
    if len(inside) == 1 or inside.isdigit():
        leading = match[1][:1] in ("~", " ", "\\")
        return f"\\text{{{inside}}}" if leading and inside.isalpha() else f"{{{inside}}}"
    return f"\\text{{{inside}}}"


def _replace_command(text: str, command: re.Match[str]) -> tuple[str, int]:
    """The replacement of one command, and where to go on."""
    name, end = command[1], command.end()
    if name in _DISCARDED_ARGUMENT:
        return " ", _skip_argument(text, end)
    if name in _TEXT:
        return "\\text", end
    if name in _FONTS:
        return "", end
    if name in _DROPPED:
        follower = text[end : end + 1]
        return " ", end + (1 if name in ("left", "right", "middle") and follower == "." else 0)
    name = _SYNONYMS.get(name, name)
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
