"""Units of measurement: which words are one, and when two of them are the same."""

import re
from collections import Counter

from app.grading.reading.lexer import Token
from app.grading.vocabulary import FUNCTIONS, names

_ALIASES = {
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
    "nm": "nanometer nanometre",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "g": "gram gm gramme",
    "kg": "kilogram kilo",
    "mg": "milligram",
    "lb": "lbs pound",
    "oz": "ounce",
    "ton": "tonne",
    "s": "sec second",
    "ms": "millisecond",
    "min": "minute mins",
    "h": "hr hour hrs",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "L": "liter litre l",
    "mL": "milliliter millilitre ml",
    "gallon": "gal",
    "acre": "",
    "hectare": "",
    "N": "newton",
    "J": "joule",
    "kJ": "kilojoule",
    "W": "watt",
    "erg": "",
    "cal": "calorie",
    "pc": "parsec",
    "AU": "au",
    "ly": "lightyear",
    "M☉": "",
    "L☉": "",
    "R☉": "",
    "Å": "angstrom",
    "T": "tesla",
    "F": "farad",
    "C": "coulomb",
    "H": "henry",
    "atm": "atmosphere",
    "bar": "",
    "u": "amu dalton",
    "arcsec": "arcsecond",
    "arcmin": "arcminute",
    "dB": "decibel",
    "M": "molar",
    "rpm": "",
    "B": "byte",
    "bit": "",
    "V": "volt",
    "A": "ampere amp",
    "Ω": "ohm",
    "Hz": "hertz",
    "Pa": "pascal",
    "K": "kelvin",
    "eV": "electronvolt",
    "mol": "mole",
    "rad": "radian",
    "degree": "deg",
    "°C": "celsius",
    "°F": "fahrenheit",
    "dollar": "usd buck",
    "euro": "eur",
    "£": "gbp quid",
    "¥": "yen yuan rmb",
    "₹": "rupee",
    "cent": "",
    "penny": "pence",
    "percent": "pct percentage",
}
_CANONICAL = {alias: unit for unit, aliases in _ALIASES.items() for alias in [unit, *aliases.split()]}
_PHRASES = {"mph": "mile/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "psi": "lb/inch^2"}
_PREFIXES = {"n": "n nano", "μ": "u μ micro", "m": "m milli", "k": "k kilo", "M": "M mega", "G": "G giga"}
_PREFIXES |= {"T": "T tera", "p": "p pico", "c": "c centi"}
_PREFIXED = {unit: each for each, spelled in _PREFIXES.items() for unit in spelled.split()}
_BASES = names("m g s L N J W V A Hz Pa eV mol F T H C pc cal bar Ω yr B bit K")
#: Units short or common enough to be recognised without ``\\text`` after a number; none reads as a product.
_BARE = names(
    "cm km kg mm lb lbs ft mph hr hrs min mins sec oz yd mi in inch inches feet foot mile meter metre second minute "
    "hour day week month year gram kilogram pound liter litre dollar cent degree percent euro yard gallon ounce "
    "kilometer centimeter kilometre centimetre millimeter unit km/h rad radian usd million billion trillion thousand"
)
#: The same in an answer alone, for in a gold answer they may be products.
_BARE_IN_ANSWERS = names(
    "Hz kHz MHz GHz THz eV keV MeV GeV Pa kPa MPa kJ MJ kW MW kV mV mA nm mL ml ms ns mg AU pc kpc Mpc erg ergs cal "
    "kcal mol amu dB Å arcsec arcmin sr rpm Gyr Myr yr yrs atm ly dozen"
)
_BARE_LETTERS = names("m s g h L N J W V K A")
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_JOINTS = names("^ { } / . , - ( ) _")
_UNIT_COMMANDS = names("cdot times degree Omega mu odot oplus")
#: Words that make a number another one, or no answer; with them a phrase is not what is counted.
_OPERATING = names(
    "not no and or plus minus over divided factorial mod modulo more less least most fewer half halves otherwise if "
    "when unless except"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SYMBOLS = [
    (re.compile(r"([MLR])\s*_\s*\{?\s*\\odot\s*\}?"), r"\1☉"),
    (re.compile(r"\\mu\s*"), "μ"),
    (re.compile(r"\\Omega\s*"), "Ω"),
    (re.compile(r"\\(?:cdot|times)\s*"), " "),
]


def canonical_unit(text: str) -> str | None:
    """The canonical spelling of a unit phrase (``square centimeters`` → ``cm^2``); None where it is none.

    Words that are no unit, such as ``ways`` or ``square units``, name what is counted and give None.
    """
    powers: Counter[str] = Counter()
    for index, part in enumerate(re.split(r"/|\bper\b", _with_symbols(text))):
        factors = _factors(part)
        if not factors:
            return None
        for unit, power in factors.items():
            powers[unit] += -power if index else power
    return "*".join(unit if power == 1 else f"{unit}^{power}" for unit, power in sorted(powers.items()) if power)


def _with_symbols(text: str) -> str:
    """The phrase with single characters for ``\\mu``, ``\\Omega`` and ``M_\\odot``."""
    for pattern, symbol in _SYMBOLS:
        text = pattern.sub(symbol, text)
    return text


def _factors(text: str) -> dict[str, int] | None:
    """Units and their powers in a product of units; None where a word is none."""
    factors: dict[str, int] = {}
    power, last = 1, ""
    for word, exponent in re.findall(r"([A-Za-z°£¥₹ΩμÅ☉]+|\d+)(?:\s*\^\s*\{?\s*(-?\s*\d{1,3})\s*\}?)?", text):
        if word.lower() in _POWER_WORDS:
            power = _POWER_WORDS[word.lower()]
            if word.lower().endswith("d") and last:  # meters squared
                factors[last] = power
                power = 1
            continue
        if word in _PHRASES:
            numerator, denominator = (_factors(part) or {} for part in _PHRASES[word].split("/"))
            factors |= numerator | {unit: -each for unit, each in denominator.items()}
            continue
        unit = _lookup(word)
        if unit is None:
            return None
        last = unit
        factors[unit] = factors.get(unit, 0) + (int(exponent.replace(" ", "")) if exponent else power)
        power = 1
    return factors


def _lookup(word: str) -> str | None:
    for form in (word, word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
        if form in _CANONICAL:
            return _CANONICAL[form]
    for prefix, canonical in _PREFIXED.items():
        rest = word.removeprefix(prefix)
        base = rest if len(prefix) == 1 else _CANONICAL.get(rest.lower().removesuffix("s"))
        if rest != word and base in _BASES:
            return f"{canonical}{base}"
    return None


def split_scale(phrase: str) -> tuple[int, str]:
    """The factor that a phrase begins with, such as ``million``, and what follows it."""
    first, _, rest = phrase.strip().partition(" ")
    factor = _SCALES.get(first.lower().removesuffix("s"))
    return (factor, rest) if factor else (1, phrase)


def split_unit(tokens: list[Token], bare_letters: bool) -> tuple[list[Token], str] | None:
    """The tokens of the value and the phrase that follows it; None where no phrase follows.

    A phrase begins with ``\\text``, or without it where a number is followed by a word that cannot be a product of
    variables. ``bare_letters`` admits single letters too (``5 m``), which only a plain number can be followed by.
    """
    depth = 0
    if bare_letters and len(tokens) > 1 and (marks := _seconds(tokens)):
        return tokens[:-marks], "arcmin" if marks == 1 else "arcsec"
    for index, token in enumerate(tokens):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(token.value, 0)
        if depth or index == 0 or tokens[index - 1].value in ("_", "^", "{"):
            continue
        if token.value in FUNCTIONS:
            continue
        if (token.kind == "text" and _is_phrase(token.value)) or _bare_unit(tokens, index, bare_letters):
            return (tokens[:index], _phrase(tokens[index:])) if _all_phrase(tokens[index:]) else None
    return None


def _seconds(tokens: list[Token]) -> int:
    """How many strokes follow a plain number, one for minutes of arc or two for seconds; 0 elsewhere."""
    marks = 2 if [token.value for token in tokens[-2:]] == ["'", "'"] else int(tokens[-1].value == "'")
    return marks if marks < len(tokens) and tokens[-marks - 1].kind == "number" else 0


def _is_phrase(text: str) -> bool:
    """Whether text can be a unit or what is counted: words without numbers, formulas and words that operate."""
    text = _with_symbols(text)
    if not re.search(r"[A-Za-zΩÅ☉°]", text) or re.search(r"\d{2}|[=\\]|(?:^|[\s,;(])\d", text):
        return False
    words = re.findall(r"[A-Za-z]+", text.lower())
    return _OPERATING.isdisjoint(words) and words[:1] not in (["squared"], ["cubed"])


def _bare_unit(tokens: list[Token], index: int, letters: bool) -> bool:
    token = tokens[index]
    if any(each.kind in ("word", "text") for each in tokens[:index]):
        return False
    if letters and token.kind == "command" and token.value in ("Omega", "mu"):
        return token.value == "Omega" or (index + 1 < len(tokens) and tokens[index + 1].kind in ("word", "text"))
    if token.kind != "word":
        return False
    word = token.value
    if word in _BARE or word.lower().removesuffix("s") in _BARE or (letters and word in _BARE_IN_ANSWERS):
        return True
    if letters and word in _BARE_LETTERS and (token.spaced or word in "ms" or len(tokens) > index + 1):
        return True
    if letters and word in "MLR" and any(each.value == "odot" for each in tokens[index + 1 : index + 4]):
        return True
    return letters and len(word) > 2 and not is_product(word) and tokens[index - 1].kind == "number"


def is_product(word: str) -> bool:
    """Whether a run of letters is a product of variables, such as ``abc`` or ``xzt``: in order or without vowel."""
    return word.islower() and len(word) <= 4 and (sorted(word) == list(word) or not set(word) & set("aeiou"))


def _all_phrase(tokens: list[Token]) -> bool:
    """Whether every token belongs to a phrase: units, words, exponents; nothing else is dropped with it."""
    if tokens[-1].value in ("/", "^", "-", "_"):
        return False
    return all(_in_phrase(tokens, index) for index in range(len(tokens)))


def _in_phrase(tokens: list[Token], index: int) -> bool:
    token = tokens[index]
    before = tokens[index - 1].value if index else ""
    if token.kind == "number":
        return before in ("^", "-") or (before == "{" and index > 1 and tokens[index - 2].value == "^")
    if token.kind == "text":
        return _is_phrase(token.value)
    if token.kind == "word":
        known = _lookup(token.value) or token.value in _PHRASES or before == "mu" or token.value in ("per", "M", "R")
        return bool(known) or (len(token.value) > 2 and not is_product(token.value) and _is_phrase(token.value))
    return (token.kind == "char" and token.value in _JOINTS) or token.value in _UNIT_COMMANDS


def _phrase(tokens: list[Token]) -> str:
    words = (f"\\{token.value}" if token.kind == "command" else token.value for token in tokens)
    return " ".join(words).replace(" ^ ", "^").replace("k \\Omega", "kΩ")
