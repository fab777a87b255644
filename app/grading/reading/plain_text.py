"""Answers that are no formula: words, times of day, numerals in a base, labelled choices."""

import re

from app.grading.answer_types import Answer, Clock, Members, NamedSet, Node, Numeral, Scalar, Words, number
from app.grading.reading.units import is_product
from app.grading.vocabulary import FUNCTIONS, INFINITIES, WORDS, listed

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the\s+)?(?:final\s+)?(?:correct\s+)?"
    r"(?:answer|result|value|solution|option|choice)\s*(?:is|are|:|=)+:?\s*|answer\s+|exactly\s+|approximately\s+|"
    r"about\s+|roughly\s+|option\s+|choice\s+)",
    re.IGNORECASE,
)
_FINAL_DOTS = re.compile(r"\\text\s*\{[.,;:\s]*\}")
#: A heading before the answer, such as ``Area:``, and what is counted in brackets after it.
_HEADING = re.compile(r"\s*[A-Za-z][A-Za-z ]{1,30}:\s*")
_COUNTED = re.compile(r"(?<=[\d }])\(([A-Za-z][a-z ]{2,30})\)$")
_CLOCK = re.compile(
    r"(\d{1,2})(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*(a\s*\.?\s*m\s*\.?|p\s*\.?\s*m\s*\.?|)", re.IGNORECASE
)
_NUMERAL = re.compile(r"(-?)\s*\(?\s*([0-9A-Z][0-9A-Z. ]*?)\s*\)?\s*_\s*\{?\s*\(?\s*([0-9]{1,2}|[a-z]+)\s*\)?\s*\}?")
_IN_BASE = re.compile(r"(-?)\s*([0-9A-Z.]+)\s*\s*\(?\s*(?:in\s+)?base[ -]*([0-9]{1,2}|[a-z]+)\s*\)?", re.IGNORECASE)
_LABEL = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s*(.+)", re.DOTALL)
_BASES = {"two": 2, "binary": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_BASES |= {"ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "hex": 16}
_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBERS = {word: value for value, word in enumerate(listed(_CARDINALS))}
_TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_DIGIT = "|".join(listed(_CARDINALS)[1:10])
_BELOW_HUNDRED = rf"(?:(?:{'|'.join(_TENS)})(?: (?:{_DIGIT}))?|{_CARDINALS.replace(' ', '|')})"
_HUNDREDS = rf"((?:(?:{_DIGIT}|an?) )?hundred)(?: (?:and )?({_BELOW_HUNDRED}))?"
_SPELLED_NUMBER = re.compile(rf"(?:{_HUNDREDS}|({_BELOW_HUNDRED}))(?: (thousand|million|billion))?")
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_SYNONYMS = dict.fromkeys(("dne", "doesnotexist"), "does not exist")
_EMPTY = frozenset(("no solution", "no solutions", "empty set", "the empty set", "empty", "no real solutions", "none"))
_EMPTY |= {"no real solution"}
_THERE_IS = re.compile(r"there (?:is|are|exists?) ")
_REALS = frozenset(("all real numbers", "all reals", "real numbers", "reals", "every real number", "any real number"))


def strip_lead_in(text: str) -> str:
    """Without "the answer is", a leading sign of equality, and punctuation at the end."""
    text = text.strip()
    opened = _TEXT.match(text)
    if opened and (lead_in := _LEAD_IN.match(opened[1].strip() + " ") or _HEADING.fullmatch(opened[1])):
        text = f"\\text{{{opened[1].strip()[lead_in.end() :]}}}{text[opened.end() :]}"
        text = text.removeprefix("\\text{}").strip()
    text = re.sub(r"^(?:\s*(?:=|\\approx|\\sim)(?!=))+", "", _LEAD_IN.sub("", text, count=1))
    text = _COUNTED.sub(r" \\text{\1}", _without_outer_braces(_without_final_dots(text)))
    quoted = re.fullmatch(r"(['\"])(.+)\1", text)
    return quoted[2].strip() if quoted else text


def _without_final_dots(text: str) -> str:
    stripped = text.rstrip(" .,;:\\")
    if stripped.endswith("}") and (empty := _FINAL_DOTS.fullmatch(stripped, max(stripped.rfind("\\text"), 0))):
        return _without_final_dots(stripped[: empty.start()])
    return stripped.strip()


def _without_outer_braces(text: str) -> str:
    """Without braces around everything, which TeX does not show."""
    braces = [match for match in re.finditer(r"\\.|[{}]", text, re.DOTALL) if match[0] in "{}"]
    opened: list[int] = []
    pairs = {}
    for brace in braces:
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            pairs[opened.pop()] = brace.start()
    low, high = 0, len(text)
    while low < high - 1 and pairs.get(low) == high - 1:
        low, high = low + 1, high - 1
    return _without_final_dots(text[low:high])


def plain_text(text: str) -> str:
    """The text without ``\\text{}``."""
    return re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(" .,;:")


def is_wordy(text: str) -> bool:
    """Whether the answer is words and not a product of variables: letters alone, not all in ``\\text``-less order."""
    if re.search(r"\\(?!text)[A-Za-z]|[=^_+*/<>|&]", text):
        return False
    plain = plain_text(text)
    if not re.fullmatch(r"[^\W\d_][^\W_'’().,;:!?\s-]*(?:[\s,.;:'’()!?-]+[^\W_]+)*[)!?'’]*|\([^\W\d_]{2,}\)", plain):
        return False
    words = re.findall(r"[^\W\d_]+", plain)
    if words[0] in FUNCTIONS | WORDS | INFINITIES and all(len(word) == 1 for word in words[1:]):
        return False
    if len(words) == 1 and "\\text" not in text:
        return len(words[0]) > 2 and not is_product(words[0])
    return any(len(word) > 2 for word in words) or ("\\text" in text and any(len(word) > 1 for word in words))


def plain_readings(text: str, lenient: bool) -> list[Answer]:
    """The readings of normalised text that need no mathematics."""
    readings: list[Answer] = []
    plain = plain_text(text)
    if re.fullmatch(r"\(?[A-Za-z]\)?", plain) and ("\\text" in text or plain.endswith(")")):
        readings.append(Scalar(Node("sym", value=plain.strip("()").upper())))
    if lenient and (label := _label(text)):
        readings.append(Scalar(Node("sym", value=label[1] or label[2])))
    return readings


def word_readings(text: str) -> list[Answer]:
    """The readings of normalised text as words; empty where it has signs that words do not have."""
    plain = plain_text(text)
    if not re.search(r"[^\W\d_]", plain) or re.search(r"\\(?!text)[A-Za-z]|[\^_=<>\[\]{}|+*/]", _TEXT.sub(r"\1", text)):
        return []
    return _words(plain)


def label_stripped(text: str) -> str | None:
    """What follows a choice's label, such as ``12`` in ``(C) 12``; None where there is no label."""
    label = _label(text)
    return label[3] if label else None


def _label(text: str) -> re.Match[str] | None:
    """A choice's label and what follows it, unless that names a further choice."""
    plain = re.sub(r"^\{\s*(\(?[A-J]\)?[.):]?)\s*\}", r"\1", _TEXT.sub(r"\1", text).strip())
    label = _LABEL.fullmatch(plain)
    further = label and re.match(r"(?:and|or)\b|[,;&/]|.*\([A-J]\)", label[3].strip(), re.DOTALL)
    return None if further else label


def _words(plain: str) -> list[Answer]:
    words = re.sub(r"[^\w\s,]+", " ", plain.casefold())
    words = re.sub(r"\s+", " ", words).strip(" ,")
    words = re.sub(r"^(?:the|an?) (?!and |or )", "", words)
    spelled = _spelled_number(words)
    if spelled is not None:
        return [Scalar(number(spelled)), Words(words)]
    if _THERE_IS.sub("", words, count=1) in _EMPTY:
        return [NamedSet(""), Words(words)]
    if words in _REALS:
        return [NamedSet("R")]
    parts = [part.strip() for part in re.split(r",|\band\b", words)]
    parts = [part for part in parts if part]
    if len(parts) > 1 and not any(part.isdigit() for part in parts):
        return [Members("list", tuple(map(_word, parts)))]
    words = words.replace(",", "")
    return [Words(_SYNONYMS.get(words.replace(" ", ""), words))]


def _spelled_number(words: str) -> int | None:
    """The value of a number in words, such as ``two hundred and five``; None for other words."""
    match = _SPELLED_NUMBER.fullmatch(words)
    if match is None:
        return None
    hundreds = _NUMBERS.get(match[1].split()[0], 1) if match[1] else 0
    rest = (match[2] or match[3] or "zero").split()
    return (100 * hundreds + sum(_NUMBERS[word] for word in rest)) * _POWERS.get(match[4], 1)


def _word(text: str) -> Answer:
    """A word; a single letter is a symbol, as it is outside ``\\text``."""
    return Scalar(Node("sym", value=text.upper())) if len(text) == 1 and text.isalpha() else Words(text)


def read_numeral(text: str) -> Numeral | None:
    """A number in a stated base, such as ``52_8`` or ``52 base 8``; None for anything else."""
    match = _NUMERAL.fullmatch(text) or _IN_BASE.fullmatch(text)
    if match is None:
        return None
    digits = match[2].replace(" ", "").upper()
    base = int(match[3]) if match[3].isdigit() else _BASES.get(match[3].lower(), 0)
    if not 2 <= base <= 36 or (not re.search(r"\d", digits) and (base <= 10 or len(digits) < 2)):
        return None
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:base] + "."
    if any(digit not in alphabet for digit in digits) or digits.count(".") > 1:
        return None
    whole, point, fraction = digits.partition(".")
    return Numeral(match[1] + (whole.lstrip("0") or "0") + point + fraction, base)


def read_clock(text: str) -> Clock | None:
    """A time of day, such as ``9:24`` or ``8:34 p.m.``; None for anything else."""
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[4]):
        return None
    hour, minute, second = int(match[1]), int(match[2] or 0), int(match[3] or 0)
    if hour > 24 or minute > 59 or second > 59:
        return None
    return Clock((hour, minute, second), re.sub(r"[.\s]", "", match[4]).lower())
