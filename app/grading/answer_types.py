"""What an answer can be once it is read."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Node:
    """An expression: an operation, its operands, and for leaves a value (``num`` and ``dec``: a Fraction, ``sym``:
    its name; ``fn`` and ``apply`` hold the function's name). ``dec`` is a number written with a point or exponent."""

    op: str
    args: tuple["Node", ...] = ()
    value: Fraction | str | None = None


def number(value: int | Fraction) -> Node:
    """A leaf for an exact number."""
    return Node("num", value=Fraction(value))


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number or an expression.

    Attributes:
        node: the expression.
        unit: its unit in canonical spelling; None where none is written.
        percent: whether a percent sign follows; ``node`` is the number before it.
        digits: significant digits, where it is written as one decimal number; otherwise None.
        places: the power of ten of the last of these digits.
    """

    node: Node
    unit: str | None = None
    percent: bool = False
    digits: int | None = None
    places: int = 0


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words, in lower case."""

    text: str


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits in a stated base."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Congruence:
    """A residue class: ``name`` (None where none is written) is congruent to ``residue``."""

    name: Node | None
    residue: Node
    modulus: Node


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day; ``half`` is "am", "pm" or empty."""

    time: tuple[int, int, int]
    half: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """Several parts with colons between."""

    parts: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Members:
    """Several answers whose order does not matter: a bare list (``kind`` "list") or a set ("set")."""

    kind: str
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Bracketed:
    """Answers in brackets, in order: a point, a vector, an interval."""

    left: str
    right: str
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class SetOperation:
    """``sign`` is "cup", "cap" or "setminus"."""

    sign: str
    left: "Answer"
    right: "Answer"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """ℝ, ℤ, … ("R", "Z") or the empty set ("")."""

    name: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple["Answer", ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """Sides with relation signs between: ``len(signs) == len(sides) − 1``."""

    sides: tuple["Answer", ...]
    signs: tuple[str, ...]


Answer = (
    Scalar
    | Words
    | Numeral
    | Congruence
    | Clock
    | Ratio
    | Members
    | Bracketed
    | SetOperation
    | NamedSet
    | Matrix
    | Relation
)
