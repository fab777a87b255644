"""Whether two answers are equal, by the conventions of docs/grading.md. Each function holds one row or two of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from app.grading.answer_types import (
    Answer,
    Bracketed,
    Clock,
    Congruence,
    Matrix,
    Members,
    NamedSet,
    Node,
    Numeral,
    Ratio,
    Relation,
    Scalar,
    Words,
    number,
)
from app.grading.comparing.identity import contains, identical, real_value
from app.grading.comparing.numeric import exact_value
from app.grading.comparing.relations import equal_relations, named_apart
from app.grading.comparing.sets import equal_regions, is_region

#: Two decimals, or a decimal and an exact number, are equal within this relative difference.
RELATIVE_TOLERANCE = Fraction(1, 10**9)
#: From this many significant digits on a decimal stands for every number that it is a rounding of.
ROUNDING_DIGITS = 5
_DECIMAL = frozenset(("dec",))


@dataclass(frozen=True)
class GoldOptions:
    """What a dataset says about a gold answer beside the answer.

    Attributes:
        tolerance: absolute difference up to which a number is correct.
        unit: the canonical unit that the gold answer is given in.
        multiple: the gold answer is several answers with commas between.
    """

    tolerance: Fraction | None = None
    unit: str | None = None
    multiple: bool = False


def equal_answers(gold: Answer, answer: Answer, options: GoldOptions) -> bool:
    """Whether ``answer`` is the answer ``gold``."""
    equal = _Equality(options)
    return equal(gold, answer)


class _Equality:
    def __init__(self, options: GoldOptions) -> None:
        self.options = options

    def __call__(self, gold: Answer, answer: Answer) -> bool:
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return equal_relations(gold, answer, self)
        if is_region(gold) or is_region(answer):
            return equal_regions(gold, answer, self)
        if isinstance(gold, Scalar) and isinstance(answer, Scalar):
            return self.scalars(gold, answer)
        rule = _RULES.get((type(gold), type(answer)))
        return rule(self, gold, answer) if rule else False

    def scalars(self, gold: Scalar, answer: Scalar) -> bool:
        if gold.unit is None and self.options.unit:
            gold = replace(gold, unit=self.options.unit)
        if gold.unit and answer.unit and gold.unit != answer.unit:
            return False
        if (gold.percent and answer.unit) or (answer.percent and gold.unit):
            return False
        if gold.percent or answer.percent:
            return self.percentages(gold, answer)
        if "degree" in (gold.unit, answer.unit) and gold.unit != answer.unit and self.as_radians(gold, answer):
            return True
        return self.numbers(gold, answer)

    def as_radians(self, gold: Scalar, answer: Scalar) -> bool:
        """90° is π/2: an angle without a unit that speaks of π is in radians."""
        bare, degrees = (answer, gold) if gold.unit == "degree" else (gold, answer)
        if not contains(bare.node, frozenset(("π",))):
            return False
        radians = Node("mul", (degrees.node, Node("div", (Node("sym", value="π"), number(180)))))
        return identical(bare.node, radians)

    def percentages(self, gold: Scalar, answer: Scalar) -> bool:
        """12 % is 12 % and 0.12; where the gold answer has the sign, 12 too; where only the answer has it, 12 is
        12 % unless the gold answer is less than 1, a fraction rather than a percentage."""
        if gold.percent and answer.percent:
            return self.numbers(gold, answer)
        if gold.percent:
            return self.numbers(gold, answer) or self.numbers(_hundredth(gold), answer)
        if self.numbers(gold, _hundredth(answer)):
            return True
        size = real_value(gold.node)
        return size is not None and abs(size) >= 1 and self.numbers(gold, answer)

    def numbers(self, gold: Scalar, answer: Scalar) -> bool:
        if self.options.tolerance is not None and self.within_tolerance(gold, answer, self.options.tolerance):
            return True
        if identical(gold.node, answer.node):
            return True
        if not (contains(gold.node, _DECIMAL) or contains(answer.node, _DECIMAL)):
            return False
        return _equal_decimals(gold, answer)

    def within_tolerance(self, gold: Scalar, answer: Scalar, tolerance: Fraction) -> bool:
        values = _fraction(gold.node), _fraction(answer.node)
        if values[0] is None or values[1] is None:
            return False
        return abs(values[0] - values[1]) <= tolerance * (1 + RELATIVE_TOLERANCE)

    def in_order(self, gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
        return len(gold) == len(answer) and all(map(self, gold, answer))

    def any_order(self, gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
        """Whether there is a one-to-one matching; equality is nearly transitive, so the first partner will do."""
        left = list(answer)
        if len(gold) != len(left):
            return False
        for each in gold:
            partner = next((index for index, other in enumerate(left) if self(each, other)), None)
            if partner is None:
                return False
            del left[partner]
        return True

    def members(self, gold: Members, answer: Members) -> bool:
        if named_apart(gold) != named_apart(answer):
            return self.in_order(gold.items, answer.items)
        if gold.kind == answer.kind == "list":
            return self.any_order(gold.items, answer.items)
        return self.any_order(self.distinct(gold.items), self.distinct(answer.items))

    def distinct(self, items: Sequence[Answer]) -> list[Answer]:
        found: list[Answer] = []
        for item in items:
            if not any(self(each, item) for each in found):
                found.append(item)
        return found

    def brackets(self, gold: Bracketed, answer: Bracketed) -> bool:
        if not self.in_order(gold.items, answer.items):
            return False
        if len(gold.items) != 2:
            return True
        low, high = gold.items
        return _same_end(gold.left, answer.left, low) and _same_end(gold.right, answer.right, high)

    def bracket_and_list(self, gold: Answer, answer: Answer) -> bool:
        """A point may be written without its brackets, in order, or with braces around it, as a set of one."""
        if any(isinstance(side, Members) and side.kind == "set" for side in (gold, answer)):
            first, second = (side if isinstance(side, Bracketed) else _only_member(side) for side in (gold, answer))
            return isinstance(first, Bracketed) and isinstance(second, Bracketed) and self.brackets(first, second)
        assert isinstance(gold, Members | Bracketed)
        assert isinstance(answer, Members | Bracketed)
        return self.in_order(gold.items, answer.items)

    def set_of_one(self, gold: Answer, answer: Answer) -> bool:
        first, second = _only_member(gold), _only_member(answer)
        return first is not None and second is not None and self(first, second)

    def matrices(self, gold: Matrix, answer: Matrix) -> bool:
        return len(gold.rows) == len(answer.rows) and all(map(self.in_order, gold.rows, answer.rows))

    def matrix_and_vector(self, gold: Answer, answer: Answer) -> bool:
        """A row or a column as a matrix is the vector with the same components, any other the list of its rows."""
        matrix, vector = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
        assert isinstance(matrix, Matrix)
        assert isinstance(vector, Bracketed)
        if len(matrix.rows) > 1 and len(matrix.rows[0]) > 1:
            vectors = [row.items for row in vector.items if isinstance(row, Bracketed)]
            first, second = (matrix.rows, vectors) if matrix is gold else (vectors, matrix.rows)
            return len(first) == len(second) and all(map(self.in_order, first, second))
        entries = [entry for row in matrix.rows for entry in row]
        return self.in_order(entries, vector.items) if matrix is gold else self.in_order(vector.items, entries)

    def ratios(self, gold: Ratio, answer: Ratio) -> bool:
        if len(gold.parts) != len(answer.parts):
            return False
        quotients = [_quotients(ratio) for ratio in (gold, answer)]
        return all(self(first, second) for first, second in zip(*quotients, strict=True))

    def ratio_and_quotient(self, gold: Answer, answer: Answer) -> bool:
        sides = [_quotients(side)[0] if isinstance(side, Ratio) else side for side in (gold, answer)]
        lengths = [len(side.parts) for side in (gold, answer) if isinstance(side, Ratio)]
        return lengths == [2] and self(*sides)

    def numerals(self, gold: Numeral, answer: Numeral) -> bool:
        return gold == answer

    def congruences(self, gold: Congruence, answer: Congruence) -> bool:
        """Of one modulus, residues that differ by a multiple of it; a name may be left out."""
        if gold.name and answer.name and not identical(gold.name, answer.name):
            return False
        if not identical(gold.modulus, answer.modulus):
            return False
        values = exact_value(gold.modulus), exact_value(gold.residue), exact_value(answer.residue)
        if values[0] and values[1] is not None and values[2] is not None:
            return (values[1] - values[2]) % values[0] == 0
        return identical(gold.residue, answer.residue)

    def residue(self, gold: Scalar, answer: Congruence) -> bool:
        """A remainder that was asked for may be written with its modulus; not the other way round."""
        return identical(gold.node, answer.residue)

    def numeral_and_digits(self, gold: Answer, answer: Answer) -> bool:
        """The base may be left out where the gold answer states it; base 10 is the usual notation."""
        numeral, scalar = (gold, answer) if isinstance(gold, Numeral) else (answer, gold)
        assert isinstance(numeral, Numeral)
        assert isinstance(scalar, Scalar)
        if numeral is answer and numeral.base != 10:
            return False
        digits = numeral.digits
        return digits.lstrip("-").replace(".", "").isdigit() and exact_value(scalar.node) == Fraction(digits)

    def clocks(self, gold: Clock, answer: Clock) -> bool:
        return gold.time == answer.time and (gold.half == answer.half or not (gold.half and answer.half))

    def words(self, gold: Words, answer: Words) -> bool:
        return gold.text == answer.text

    def named_sets(self, gold: NamedSet, answer: NamedSet) -> bool:
        return gold.name == answer.name


_RULES: dict[tuple[type, type], Callable[[_Equality, Any, Any], bool]] = {
    (Members, Members): _Equality.members,
    (Bracketed, Bracketed): _Equality.brackets,
    (Bracketed, Members): _Equality.bracket_and_list,
    (Members, Bracketed): _Equality.bracket_and_list,
    (Bracketed, Scalar): _Equality.set_of_one,
    (Scalar, Bracketed): _Equality.set_of_one,
    (Members, Scalar): _Equality.set_of_one,
    (Scalar, Members): _Equality.set_of_one,
    (Matrix, Matrix): _Equality.matrices,
    (Matrix, Bracketed): _Equality.matrix_and_vector,
    (Bracketed, Matrix): _Equality.matrix_and_vector,
    (Ratio, Ratio): _Equality.ratios,
    (Ratio, Scalar): _Equality.ratio_and_quotient,
    (Scalar, Ratio): _Equality.ratio_and_quotient,
    (Congruence, Congruence): _Equality.congruences,
    (Scalar, Congruence): _Equality.residue,
    (Numeral, Numeral): _Equality.numerals,
    (Numeral, Scalar): _Equality.numeral_and_digits,
    (Scalar, Numeral): _Equality.numeral_and_digits,
    (Clock, Clock): _Equality.clocks,
    (Words, Words): _Equality.words,
    (NamedSet, NamedSet): _Equality.named_sets,
}


def _hundredth(scalar: Scalar) -> Scalar:
    """The value of a percentage."""
    return Scalar(Node("div", (scalar.node, number(100))), None, False, scalar.digits, scalar.places - 2)


def _fraction(node: Node) -> Fraction | None:
    """An exact value, or for irrational constants one to 30 digits; None for expressions with variables."""
    exact = exact_value(node)
    if exact is not None:
        return exact
    approximate = real_value(node)
    finite = approximate is not None and abs(approximate) != float("inf")
    return Fraction(approximate) if approximate is not None and finite else None


def _equal_decimals(gold: Scalar, answer: Scalar) -> bool:
    """Within the relative tolerance, or one a rounding of the other to at least ``ROUNDING_DIGITS`` digits."""
    a, b = _fraction(gold.node), _fraction(answer.node)
    if a is None or b is None:
        return False
    difference = abs(a - b)
    if difference <= RELATIVE_TOLERANCE * max(abs(a), abs(b)):
        return True
    rounded = [each for each in (gold, answer) if each.digits is not None]
    if len(rounded) == 2 and gold.places == answer.places:
        return False
    coarser = max(rounded, key=lambda each: each.places, default=None)
    if coarser is None or coarser.digits is None or coarser.digits < ROUNDING_DIGITS:
        return False
    unit = Fraction(10) ** coarser.places
    shorter, longer = (a, b) if coarser is gold else (b, a)
    return difference <= unit / 2 or (abs(shorter) < abs(longer) and difference < unit)  # rounded, or cut off


def _same_end(left: str, right: str, item: Answer) -> bool:
    """Whether two interval ends agree; at infinity there is nothing to include."""
    infinite = isinstance(item, Scalar) and real_value(item.node) in (float("inf"), -float("inf"))
    return infinite or (left in "[]") == (right in "[]")


def _only_member(answer: Answer) -> Answer | None:
    if isinstance(answer, Members):
        return answer.items[0] if answer.kind == "set" and len(answer.items) == 1 else None
    if isinstance(answer, Bracketed):
        return answer.items[0] if len(answer.items) == 1 else None
    return answer


def _quotients(ratio: Ratio) -> list[Answer]:
    """The parts relative to the last one."""
    nodes = [part.node for part in ratio.parts if isinstance(part, Scalar)]
    return [Scalar(Node("div", (node, nodes[-1]))) for node in nodes[:-1]]


def gold_options(extra: Mapping[str, Any], canonical_unit: Callable[[str], str | None]) -> GoldOptions:
    """The options in a data row: ``error`` (a tolerance), ``unit``, ``is_multiple_answer``; others are ignored."""
    error, unit = extra.get("error"), extra.get("unit")
    tolerance = None
    if error not in (None, ""):
        tolerance = Fraction(str(error)) if _is_number(str(error)) else None
    return GoldOptions(tolerance, canonical_unit(str(unit)) if unit else None, bool(extra.get("is_multiple_answer")))


def _is_number(text: str) -> bool:
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        return False
    return True
