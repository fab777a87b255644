"""Units of measurement: which words are one, and when two of them are the same."""

import re

from app.rewards.lexer import Token
from app.rewards.vocabulary import names

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
    "mile/h": "mph",
    "km/h": "kph kmh kmph",
    "percent": "pct percentage",
}
_CANONICAL = {alias: unit for unit, names in _ALIASES.items() for alias in [unit, *names.split()]}
#: Units short or common enough to be recognised without ``\\text`` after a number; none reads as a product.
_BARE = names(
    "cm km kg mm lb lbs ft mph hr hrs min mins sec oz yd mi in inch inches feet foot mile meter metre second minute "
    "hour day week month year gram kilogram pound liter litre dollar cent degree percent euro yard gallon ounce "
    "kilometer centimeter kilometre centimetre millimeter unit km/h rad radian usd"
)
_BARE_LETTERS = names("m s g h L N J W V K A")
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_JOINTS = names("^ { } / . , - ( )")


def canonical_unit(text: str) -> str | None:
    """The canonical spelling of a unit phrase (``square centimeters`` → ``cm^2``); None where it is none.

    Words that are no unit, such as ``ways`` or ``square units``, name what is counted and give None.
    """
    parts = [_canonical_factor(part) for part in re.split(r"/|\bper\b", text)]
    known = [part for part in parts if part]
    return "/".join(known) if known and len(known) == len(parts) else None


def _canonical_factor(text: str) -> str | None:
    factors: list[str] = []
    power = 1
    for word, exponent in re.findall(r"([A-Za-z°£¥₹Ω]+|\d+)(?:\s*\^\s*\{?\s*(-?\d+)\s*\}?)?", text):
        if word.lower() in _POWER_WORDS:
            power = _POWER_WORDS[word.lower()]
            if word.lower().endswith("d") and factors:  # meters squared
                factors[-1] += f"^{power}"
                power = 1
            continue
        unit = _lookup(word)
        if unit is None:
            return None
        raised = int(exponent) if exponent else power
        factors.append(unit if raised == 1 else f"{unit}^{raised}")
        power = 1
    return "*".join(factors) or None


def _lookup(word: str) -> str | None:
    for form in (word, word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
        if form in _CANONICAL:
            return _CANONICAL[form]
    return None


def split_unit(tokens: list[Token], bare_letters: bool) -> tuple[list[Token], str] | None:
    """The tokens of the value and the phrase that follows it; None where no phrase follows.

    A phrase begins with ``\\text``, or without it where a number is followed by a word that cannot be a product of
    variables. ``bare_letters`` admits single letters too (``5 m``), which only a plain number can be followed by.
    """
    depth = 0
    for index, token in enumerate(tokens):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(token.value, 0)
        if depth or index == 0 or tokens[index - 1].value in ("_", "^", "{"):
            continue
        if (token.kind == "text" and _is_phrase(token.value)) or _bare_unit(tokens, index, bare_letters):
            return (tokens[:index], _phrase(tokens[index:])) if _all_phrase(tokens[index:]) else None
    return None


def _is_phrase(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]", text)) and not re.search(r"\d{2}|[=\\]", text)


def _bare_unit(tokens: list[Token], index: int, letters: bool) -> bool:
    token = tokens[index]
    if token.kind != "word" or any(each.kind in ("word", "text") for each in tokens[:index]):
        return False
    word = token.value
    if word in _BARE or word.lower().removesuffix("s") in _BARE:
        return True
    if letters and word in _BARE_LETTERS:
        return token.spaced or word in "ms" or len(tokens) > index + 1
    return letters and len(word) > 2 and not is_product(word) and tokens[index - 1].kind == "number"


def is_product(word: str) -> bool:
    """Whether a run of letters is a product of variables, such as ``abc`` or ``xzt``: in order or without vowel."""
    return word.islower() and len(word) <= 4 and (sorted(word) == list(word) or not set(word) & set("aeiou"))


def _all_phrase(tokens: list[Token]) -> bool:
    if tokens[-1].value in ("/", "^", "-", "_"):
        return False
    return all(
        token.kind in ("text", "word", "number")
        or (token.kind == "char" and token.value in _JOINTS)
        or token.value in ("cdot", "degree")
        for token in tokens
    )


def _phrase(tokens: list[Token]) -> str:
    return " ".join(token.value for token in tokens).replace(" ^ ", "^")
