"""Text → answers: every sensible reading of it, as lists, sets, intervals, matrices, relations and scalars."""

from dataclasses import replace

from app.grading.answer_types import (
    Answer,
    Bracketed,
    Congruence,
    Matrix,
    Members,
    NamedSet,
    Node,
    Ratio,
    Relation,
    Scalar,
    SetOperation,
    Words,
    number,
)
from app.grading.comparing.inequalities import solved
from app.grading.reading.expressions import parse_expression
from app.grading.reading.lexer import Token, UnreadableError, tokenize
from app.grading.reading.lists import combined
from app.grading.reading.normalise import normalise
from app.grading.reading.plain_text import (
    is_wordy,
    label_stripped,
    plain_readings,
    read_clock,
    read_numeral,
    strip_lead_in,
    word_readings,
)
from app.grading.reading.splitting import (
    BRACKETS,
    LOGICAL,
    closing_index,
    double_signs,
    is_separator,
    joints,
    significant_digits,
    spelled,
    split,
    split_relations,
    walk_backwards,
)
from app.grading.reading.units import canonical_unit, split_scale, split_unit
from app.grading.vocabulary import CURRENCY, FUNCTIONS, names

MAX_ITEMS = 100
_TEMPERATURES = ("C", "F", "K")
#: What follows ℝ where only positive numbers are meant.
_HALF_LINES = {"^+": "(", "_+": "(", "_>0": "(", "_gt0": "(", "_ge0": "["}
_SET_SIGNS = ("cup", "cap", "setminus")
_CURRENCY_UNITS = dict(zip(CURRENCY.values(), ("dollar", "euro", "£", "¥", "₹"), strict=True))
_MATRICES = names("matrix pmatrix bmatrix Bmatrix smallmatrix psmallmatrix bsmallmatrix array")


def read_answers(text: str, lenient: bool) -> list[Answer]:
    """All readings of an answer, the likeliest first; empty where there is none.

    Args:
        text: what stands in the box, or a gold answer.
        lenient: for a model's answer: a single letter after a number may be a unit, a word what is counted, and a
            label such as ``(C)`` may stand before an answer.
    """
    normalised = strip_lead_in(normalise(text))
    if not normalised:
        return []
    readings = plain_readings(normalised, lenient)
    math = [] if is_wordy(normalised) else _math_readings(normalised, lenient)
    readings = math + readings + ([] if math else word_readings(normalised))
    rest = label_stripped(normalised) if lenient else None
    return readings + (_math_readings(rest, lenient) if rest else [])


def _math_readings(text: str, lenient: bool) -> list[Answer]:
    readings: list[Answer] = []
    for commas_group_digits in (True, False) if "," in text else (True,):
        tokens = tokenize(text, commas_group_digits)
        for bare_letters in (False, True) if lenient else (False,):
            try:
                answer = _Reader(bare_letters).answer(tokens)
            except UnreadableError:
                continue
            if answer not in readings:
                readings.append(answer)
    return readings


class _Reader:
    """Reads tokens as one answer; every method raises :class:`UnreadableError` where it cannot use every token."""

    def __init__(self, bare_letters: bool) -> None:
        self.bare_letters = bare_letters

    def answer(self, tokens: list[Token]) -> Answer:
        parts = _system(tokens) or [part for part in split(tokens, is_separator) if part]
        if not parts:
            raise UnreadableError("nothing there")
        if len(parts) > MAX_ITEMS:
            raise UnreadableError("too many parts")
        items = [each for part in parts for each in self.plus_minus(part)]
        if any(token.value in LOGICAL for token in tokens) and not all(isinstance(each, Relation) for each in items):
            raise UnreadableError("a logical sign between something else than statements")
        return combined(items, joints(tokens)) if len(items) > 1 else items[0]

    def plus_minus(self, tokens: list[Token]) -> list[Answer]:
        """One answer, or the two that a ± stands for; all signs of one answer change together."""
        signs = double_signs(tokens)
        if not signs:
            return [self.item(tokens)]
        both = []
        for upper in (True, False):
            chosen = list(tokens)
            for index in signs:
                sign = "+" if (tokens[index].value == "pm") == upper else "-"
                chosen[index] = Token("char", sign, tokens[index].spaced)
            both.append(self.item(chosen))
        return both

    def item(self, tokens: list[Token]) -> Answer:
        congruence = self.congruence(tokens)
        if congruence:
            return congruence
        sides, signs = split_relations(tokens)
        if not signs:
            return self.set_expression(tokens)
        pieces = split(tokens, lambda token: token.kind == "command" and token.value == "cup")
        if len(pieces) > 1 and all(split_relations(piece)[1] for piece in pieces):
            return combined([self.item(piece) for piece in pieces], {"or"})
        if not sides[0]:  # "= 5", "\approx 5"
            sides, signs = sides[1:], signs[1:]
        if len(sides) > 12:
            raise UnreadableError("a chain too long")
        read = [self.named(sides[0], signs), *(self.set_expression(side) for side in sides[1:])]
        return Relation(tuple(read), tuple(signs)) if signs else read[0]

    def congruence(self, tokens: list[Token]) -> Congruence | None:
        """``n \\equiv 1 \\pmod 3``; None where no modulus is written."""
        value, *modulus = split(tokens, lambda token: token.kind == "command" and token.value == "pmod")
        if not modulus:
            return None
        sides, signs = split_relations(value)
        if len(modulus) > 1 or signs not in ([], ["equiv"], ["="]):
            raise UnreadableError("several congruences in one")
        name = parse_expression(sides[0]) if signs else None
        return Congruence(name, parse_expression(sides[-1]), parse_expression(modulus[0]))

    def named(self, tokens: list[Token], signs: list[str]) -> Answer:
        """The left side of a relation; of an equation it may be words, which name what it is equal to."""
        try:
            return self.set_expression(tokens)
        except UnreadableError:
            if signs[:1] != ["="] or not tokens:
                raise
            return Words(" ".join(token.value for token in tokens).casefold())

    def set_expression(self, tokens: list[Token]) -> Answer:
        for index, depth in walk_backwards(tokens):
            sign = _set_sign(tokens, index) if depth == 0 and 0 < index < len(tokens) - 1 else None
            if sign:
                return SetOperation(sign, self.set_expression(tokens[:index]), self.term(tokens[index + 1 :]))
        return self.term(tokens)

    def term(self, tokens: list[Token]) -> Answer:
        if not tokens:
            raise UnreadableError("a part is missing")
        special = _named_set(tokens) or read_numeral(spelled(tokens))
        clock = None if self.bare_letters and tokens[-1].kind == "number" else read_clock(spelled(tokens))
        if special or clock:
            return special or clock  # type: ignore[return-value]
        closer = BRACKETS.get(tokens[0].value) if tokens[0].kind == "char" else None
        if closer and closing_index(tokens) == len(tokens) - 1:
            inner = self.bracketed(tokens)
            if inner is not None:
                return inner
        matrix = self.matrix(tokens) or self.transposed_vector(tokens)
        if matrix is not None:
            return matrix
        return self.ratio(tokens) or self.scalar(tokens)

    def bracketed(self, tokens: list[Token]) -> Answer | None:
        """What stands in brackets around all the tokens; None for brackets that only group."""
        left, right, inside = tokens[0].value, tokens[-1].value, tokens[1:-1]
        parts = split(inside, lambda token: token.kind == "char" and token.value in (",", ";"))
        if left == "\\{":
            if right != "\\}":
                raise UnreadableError("unequal braces")
            return self.members(inside)
        if len(parts) > MAX_ITEMS:
            raise UnreadableError("too many parts")
        if len(parts) > 1:
            return Bracketed(left, right, tuple(self.item(part) for part in parts))
        if left == "⟨":
            raise UnreadableError("a single component")
        if not inside:
            raise UnreadableError("empty brackets")
        inner = self.matrix(inside)
        if inner is None and left == "[" and right == "]":
            return Bracketed(left, right, (self.item(inside),))
        return inner

    def members(self, inside: list[Token]) -> Answer:
        if not inside:
            return NamedSet("")
        parts = split(inside, lambda token: token.kind == "char" and token.value in ("|", ":"))
        if len(parts) == 2 and _is_set_variable(parts[0]):
            condition = self.answer(parts[1])
            found = solved(condition) if isinstance(condition, Relation) else None
            return found.region if found else condition
        answer = self.answer(inside)
        return Members("set", answer.items if isinstance(answer, Members) and answer.kind == "list" else (answer,))

    def matrix(self, tokens: list[Token]) -> Matrix | None:
        """A matrix, with a scalar factor before it and a transposition sign after it."""
        begin = next((i for i, token in enumerate(tokens) if token.kind == "command" and token.value == "begin"), None)
        if begin is None:
            return None
        environment, start = _environment(tokens, begin)
        end = next((i for i in range(start, len(tokens)) if tokens[i].value == "end"), len(tokens))
        if environment not in _MATRICES or end == len(tokens):
            raise UnreadableError(f"{environment} is not a matrix")
        rows = [row for row in split(tokens[start:end], lambda token: token.value == "row") if row]
        cells = [[self.item(cell) for cell in split(row, lambda token: token.value == "&")] for row in rows]
        matrix = Matrix(tuple(map(tuple, cells)))
        if not cells or len({len(row) for row in cells}) != 1 or len(cells) * len(cells[0]) > MAX_ITEMS:
            raise UnreadableError("not a rectangle")
        rest = tokens[_environment(tokens, end)[1] :]
        return _scaled(_transposed(matrix, rest), tokens[:begin])

    def transposed_vector(self, tokens: list[Token]) -> Answer | None:
        """``[1, 2]^T``, a vector; None for anything else."""
        end = closing_index(tokens) + 1
        if not 2 < end < len(tokens) or tokens[0].value not in ("(", "[", "⟨") or not _is_transposition(tokens[end:]):
            return None
        inner = self.bracketed(tokens[:end])
        return replace(inner, left="(", right=")") if isinstance(inner, Bracketed) else None

    def ratio(self, tokens: list[Token]) -> Answer | None:
        parts = split(tokens, lambda token: token.kind == "char" and token.value == ":")
        if len(parts) == 1 or (len(parts) == 2 and not all(parts)):
            return None
        return Ratio(tuple(self.scalar(part) for part in parts))

    def scalar(self, tokens: list[Token]) -> Scalar:
        value, phrase, currency = self.affixes(tokens)
        scale, phrase = split_scale(phrase)
        value, unit, percent = _read_unit(value, phrase.strip(), canonical_unit(phrase) or currency)
        node = parse_expression(value)
        if scale > 1:
            return Scalar(Node("mul", (node, number(scale))), unit, percent)
        digits, places = significant_digits(value)
        return Scalar(node, unit, percent, digits, places)

    def affixes(self, tokens: list[Token]) -> tuple[list[Token], str, str | None]:
        """The tokens of the bare value, the phrase after it, and the currency."""
        currency = [token for token in tokens if token.kind == "currency"]
        if len(currency) > 1:
            raise UnreadableError("several currency signs")
        unit = _CURRENCY_UNITS[currency[0].value] if currency else None
        value = [token for token in tokens if token.kind != "currency"]
        if currency and (tokens.index(currency[0]) > 1 and tokens[-1] is not currency[0]):
            raise UnreadableError("a currency sign in the middle")
        value, phrase = split_unit(value, self.bare_letters) or (value, "")
        return value, phrase, unit


def _read_unit(value: list[Token], scale: str, unit: str | None) -> tuple[list[Token], str | None, bool]:
    """The value without percent and degree signs, its unit, and whether it is a percentage."""
    if value and value[-1].value in ("%", "\\%"):
        return value[:-1], None, True
    if unit == "percent":
        return value, None, True
    if not scale and len(value) > 2 and value[-2].value == "degree" and value[-1].value in _TEMPERATURES:
        value, scale = value[:-1], value[-1].value
    if _ends_in_degrees(value):
        return value[:-1], f"°{scale}" if scale in _TEMPERATURES else "degree", False
    return value, unit, False


def _system(tokens: list[Token]) -> list[list[Token]]:
    """The lines of a system of equations within ``cases``; empty for anything else."""
    if [token.value for token in tokens[:4]] != ["begin", "{", "cases", "}"] or closing_index(tokens) != len(
        tokens
    ) - 4:
        return []
    rows = split(tokens[4:-4], lambda token: token.kind == "command" and token.value == "row")
    return [[token for token in row if token.kind != "char" or token.value != ","] for row in rows if row]


def _set_sign(tokens: list[Token], index: int) -> str | None:
    """The set operation that a token stands for; a minus before a set takes it away."""
    token = tokens[index]
    if token.kind == "command" and token.value in _SET_SIGNS:
        return token.value
    return "setminus" if token.value == "-" and tokens[index + 1].value == "\\{" else None


def _ends_in_degrees(tokens: list[Token]) -> bool:
    """Whether a degree sign ends the value itself, and not the argument of a function without brackets."""
    if len(tokens) < 2 or tokens[-1].kind != "command" or tokens[-1].value != "degree":
        return False
    return not any(token.kind in ("command", "word", "text") and token.value in FUNCTIONS for token in tokens)


def _is_set_variable(tokens: list[Token]) -> bool:
    """Whether a set's description begins so: ``x`` or ``x ∈ ℝ``."""
    variable, *rest = [token.value for token in tokens if token.value not in "{}"] or [""]
    return len(variable) == 1 and variable.isalpha() and rest in ([], ["in", "mathbb", "R"], ["in", "reals"])


def _named_set(tokens: list[Token]) -> NamedSet | Bracketed | None:
    values = [token.value for token in tokens if token.value not in ("{", "}")]
    if values in (["emptyset"], ["\\{", "\\}"]):
        return NamedSet("")
    if values == ["reals"]:
        return NamedSet("R")
    if len(values) > 1 and values[0] in ("mathbb", "Bbb"):
        if values[1] == "R" and (ends := _HALF_LINES.get("".join(values[2:]))):
            zero, infinity = Scalar(number(0)), Scalar(Node("sym", value="∞"))
            return Bracketed(ends[0], ")", (zero, infinity))
        return NamedSet(values[1]) if len(values) == 2 and values[1] in "RZNQC" else None
    return None


def _environment(tokens: list[Token], index: int) -> tuple[str, int]:
    """The name in ``\\begin{name}`` at ``index``, and where what follows it begins (after a column specification)."""
    names = [token.value for token in tokens[index + 1 : index + 4]]
    if len(names) < 3 or names[0] != "{" or names[2] != "}":
        raise UnreadableError("an unnamed environment")
    after = index + 4
    if tokens[index].value == "begin" and names[1] == "array" and after < len(tokens) and tokens[after].value == "{":
        while after < len(tokens) and tokens[after].value != "}":
            after += 1
        after += 1
    return names[1], after


def _transposed(matrix: Matrix, rest: list[Token]) -> Matrix:
    if not rest:
        return matrix
    if not _is_transposition(rest):
        raise UnreadableError("something after a matrix")
    return Matrix(tuple(zip(*matrix.rows, strict=True)))


def _is_transposition(tokens: list[Token]) -> bool:
    values = [token.value for token in tokens if token.value not in "{}"]
    return values in (["^", "T"], ["^", "top"], ["^", "intercal"])


def _scaled(matrix: Matrix, factor: list[Token]) -> Matrix:
    while factor and factor[-1].value in ("cdot", "times", "*"):
        factor = factor[:-1]
    if not factor:
        return matrix
    node = Node("neg", (Node("num", value=None),)) if [token.value for token in factor] == ["-"] else None
    scale = node or parse_expression(factor)

    def scaled(entry: Answer) -> Answer:
        if not isinstance(entry, Scalar):
            raise UnreadableError("a factor before a matrix of something else than numbers")
        product = Node("neg", (entry.node,)) if node else Node("mul", (scale, entry.node))
        return replace(entry, node=product, digits=None)

    return Matrix(tuple(tuple(map(scaled, row)) for row in matrix.rows))
