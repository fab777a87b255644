"""The parser's cursor over tokens, and how it reads numbers: decimals, periods, mixed numbers, TeX's single digits."""

from collections.abc import Callable
from fractions import Fraction

from app.grading.answer_types import Node, number
from app.grading.reading.lexer import Token, UnreadableError

#: Bound on the depth of the parser's recursion and of the tree, which later steps walk recursively.
MAX_DEPTH = 60


class NumeralParser:
    """Walks over tokens; ``position`` is the next one's index."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> Token | None:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else None

    def at(self, *values: str, kind: str = "char") -> bool:
        token = self.peek()
        return token is not None and token.kind == kind and token.value in values

    def next(self) -> Token:
        token = self.peek()
        if token is None:
            raise UnreadableError("ends too early")
        self.position += 1
        return token

    def expect(self, value: str) -> None:
        if not self.at(value):
            raise UnreadableError(f"{value!r} is missing")
        self.position += 1

    def deeper(self, rule: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        node = rule()
        self.depth -= 1
        return node

    def numeral(self, token: Token) -> Node:
        value = token.number()
        if self.at("overline", kind="command"):
            return self.repeating(token)
        if not token.decimal and value.denominator == 1:
            fraction = self.mixed_part()
            if fraction is not None:
                return number(value + fraction)
        return Node("dec" if token.decimal else "num", value=value)

    def repeating(self, token: Token) -> Node:
        """A decimal with a bar over its period: 0.1\\overline{6}."""
        digits = [each.value for each in self.tokens[self.position + 1 : self.position + 4]]
        places = len(token.value.partition(".")[2])
        if "." not in token.value or len(digits) < 3 or not digits[1].isdigit():
            raise UnreadableError("a bar over something other than a period")
        self.position += 4
        period = Fraction(int(digits[1]), 10 ** len(digits[1]) - 1)
        return number(token.number() + period / 10**places)

    def mixed_part(self) -> Fraction | None:
        """The fraction of a mixed number, such as ``1\\frac{4}{5}`` or ``1 4/5``; None where none follows."""
        start = self.position
        if self.at("frac", kind="command"):
            self.next()
            parts = [self.literal_argument(), self.literal_argument()]
        elif (plain := self.plain_fraction()) is not None:
            parts = list(plain)
        else:
            return None
        top, bottom = parts
        if top is None or bottom is None or not 0 < top < bottom:
            self.position = start
            return None
        return Fraction(top, bottom)

    def plain_fraction(self) -> tuple[int, int] | None:
        window = self.tokens[self.position : self.position + 3]
        shape = [token.kind for token in window] == ["number", "char", "number"]
        if not shape or window[1].value != "/" or not window[0].spaced:
            return None
        if not (window[0].value.isdigit() and window[2].value.isdigit()):
            return None
        self.position += 3
        return int(window[0].value), int(window[2].value)

    def literal_argument(self) -> int | None:
        """A braced or bare argument that is a plain whole number; otherwise None, with the position undefined."""
        braced = self.at("{")
        self.position += braced
        token = self.peek()
        if token is None or token.kind != "number" or not token.value.isdigit():
            return None
        if not braced:
            return int(self.split_digit())
        self.position += 1
        if not self.at("}"):
            return None
        self.position += 1
        return int(token.value)

    def split_digit(self) -> str:
        """TeX's unbraced argument: one digit of a number; what is left of the number stays."""
        token = self.next()
        if not token.value[0].isdigit() or token.decimal:
            raise UnreadableError("a decimal number without braces")
        if len(token.value) > 1:
            self.position -= 1
            rest = token.value[1:]
            self.tokens = [*self.tokens]
            self.tokens[self.position] = Token("number", rest)
        return token.value[0]
