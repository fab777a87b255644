"""Tokens → an expression tree. A recursive-descent parser for the algebra that answers are written in.

Implicit products, mixed numbers, TeX's unbraced arguments and functions without brackets are understood. Whatever is
not fully understood raises :class:`UnreadableError`: no part of an answer is ever dropped.
"""

from collections.abc import Callable
from fractions import Fraction

from app.rewards.answer_types import Node, number
from app.rewards.lexer import Token, UnreadableError, expand_words
from app.rewards.vocabulary import FUNCTIONS, GREEK, names

#: Bounds on the depth of the parser's recursion and of the tree, which later steps walk recursively.
MAX_DEPTH = 60
MAX_TOKENS = 300

_DECORATIONS = names("overline bar tilde dot ddot hat widehat widetilde check acute grave breve")
_CLOSERS = {"(": ")", "[": "]", "{": "}", "⌊": "⌋", "⌈": "⌉", "\\{": "\\}"}
_WRAPPERS = {"⌊": "floor", "⌈": "ceil"}
_APPLIED = frozenset("fghFGH")
_PRODUCT_SIGNS = frozenset(("times", "cdot"))


def parse_expression(tokens: list[Token]) -> Node:
    """The tree of all the tokens; :class:`UnreadableError` where they are no expression."""
    expanded = expand_words(tokens)
    if len(expanded) > MAX_TOKENS:
        raise UnreadableError("too long")
    parser = _Parser(expanded)
    tree = parser.sum()
    if parser.position != len(parser.tokens):
        raise UnreadableError(f"unexpected {parser.tokens[parser.position].value!r}")
    return tree


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.open_bars = 0

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

    def sum(self) -> Node:
        node = self.deeper(self.product)
        while self.at("+", "-"):
            sign = self.next().value
            term = self.deeper(self.product)
            node = Node("add", (node, term if sign == "+" else Node("neg", (term,))))
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.at("*") or self.at(*_PRODUCT_SIGNS, kind="command"):
                self.next()
                node = Node("mul", (node, self.signed()))
            elif self.at("/", ":") or self.at("div", kind="command"):
                self.next()
                node = Node("div", (node, self.signed()))
            elif self.starts_factor():
                node = Node("mul", (node, self.power()))
            else:
                return node

    def signed(self) -> Node:
        if self.at("-"):
            self.next()
            return Node("neg", (self.deeper(self.signed),))
        if self.at("+"):
            self.next()
            return self.deeper(self.signed)
        return self.power()

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign; two numbers side by side are no product."""
        token = self.peek()
        if token is None or (token.kind == "number" and self.tokens[self.position - 1].kind == "number"):
            return False
        if token.kind in ("number", "word"):
            return True
        if token.kind == "command":
            return token.value not in ("row", "end", "cup", "cap", "setminus", "pm", "mp", "to", "degree", "div")
        if token.value in ("|", "‖"):
            return self.open_bars == 0
        return token.kind == "char" and token.value in _CLOSERS and token.value != "\\{"

    def power(self) -> Node:
        node = self.postfix(self.atom())
        while self.at("^"):
            self.next()
            node = self.postfix(Node("pow", (node, self.deeper(self.exponent))))
        return node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.at("!"):
                self.next()
                double = self.at("!")
                self.position += double
                node = Node("fn", (node,), "factorial2" if double else "factorial")
            elif self.at("degree", kind="command"):
                self.next()
                node = Node("mul", (node, Node("div", (Node("sym", value="π"), number(180)))))
            elif self.at("\\%", "%"):
                self.next()
                node = Node("div", (node, number(100)))
            else:
                return node

    def exponent(self) -> Node:
        if self.at("-", "+"):
            sign = self.next().value
            node = self.deeper(self.exponent)
            return Node("neg", (node,)) if sign == "-" else node
        node = self.postfix(self.atom())
        if self.at("^"):
            self.next()
            return Node("pow", (node, self.deeper(self.exponent)))
        return node

    def atom(self) -> Node:
        token = self.next()
        if token.kind == "number":
            return self.numeral(token)
        if token.kind == "word":
            return self.symbol(token.value)
        if token.kind == "command":
            return self.command(token.value)
        if token.kind == "char" and token.value in _CLOSERS:
            return self.bracketed(token.value)
        if token.kind == "char" and token.value in ("|", "‖"):
            return self.bars(token.value)
        raise UnreadableError(f"unexpected {token.value!r}")

    def bracketed(self, opener: str) -> Node:
        bars, self.open_bars = self.open_bars, 0
        node = self.deeper(self.sum)
        self.expect(_CLOSERS[opener])
        self.open_bars = bars
        return Node("fn", (node,), _WRAPPERS[opener]) if opener in _WRAPPERS else node

    def bars(self, bar: str) -> Node:
        bars, self.open_bars = self.open_bars, 1
        node = self.deeper(self.sum)
        self.expect(bar)
        self.open_bars = bars
        return Node("fn", (node,), "abs")

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

    def argument(self) -> Node:
        """The argument of a TeX command: a braced group or a single token."""
        token = self.peek()
        if token is not None and token.kind == "number":
            return number(int(self.split_digit()))
        return self.deeper(self.atom)

    def symbol(self, name: str) -> Node:
        primes = 0
        while True:
            if self.at("'"):
                self.next()
                primes += 1
            elif self.at_prime_group():
                primes += self.skip_prime_group()
            elif self.at("_"):
                self.next()
                name = f"{name}_{self.subscript()}"
            else:
                break
        name += "'" * primes
        if name[0] in _APPLIED and self.at("(") and not self.tokens[self.position].spaced:
            self.next()
            return Node("apply", self.arguments(")"), name)
        return Node("sym", value=name)

    def at_prime_group(self) -> bool:
        window = [token.value for token in self.tokens[self.position : self.position + 3]]
        return window[:2] == ["^", "prime"] or window == ["^", "{", "prime"] or window[:2] == ["^", "'"]

    def skip_prime_group(self) -> int:
        self.next()
        braced = self.at("{")
        self.position += braced
        primes = 0
        while self.at("prime", kind="command") or self.at("'"):
            self.next()
            primes += 1
        if braced:
            self.expect("}")
        return primes

    def subscript(self) -> str:
        token = self.next()
        if token.value != "{":
            return token.value
        depth, parts = 1, []
        while depth:
            token = self.next()
            depth += {"{": 1, "}": -1}.get(token.value, 0) if token.kind == "char" else 0
            parts.append(token.value)
        return "".join(part for part in parts if part not in "{}")

    def arguments(self, closer: str) -> tuple[Node, ...]:
        found = [self.deeper(self.sum)]
        while self.at(","):
            self.next()
            found.append(self.deeper(self.sum))
        self.expect(closer)
        return tuple(found)

    def command(self, name: str) -> Node:
        if name == "frac":
            top = self.argument()
            return Node("div", (top, self.argument()))
        if name == "binom":
            top = self.argument()
            return Node("fn", (top, self.argument()), "binomial")
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in _DECORATIONS:
            return self.decorated(name)
        if name in ("pi", "infty", "iunit"):
            return Node("sym", value={"pi": "π", "infty": "∞", "iunit": "i"}[name])
        if name in GREEK:
            return self.symbol(name)
        raise UnreadableError(f"\\{name} is not part of an expression")

    def root(self) -> Node:
        degree = number(2)
        if self.at("["):
            self.next()
            degree = self.deeper(self.sum)
            self.expect("]")
        token = self.peek()
        # a model that leaves the braces out means the whole number: sqrt 12
        bare = token is not None and token.kind == "number"
        return Node("root", (degree, self.deeper(self.atom if bare else self.argument)))

    def decorated(self, name: str) -> Node:
        node = self.argument()
        if node.op == "sym":
            return self.symbol(f"{name}:{node.value}")
        letters = _letters(node)
        return self.symbol(f"{name}:{letters}")

    def function(self, name: str) -> Node:
        base = exponent = None
        while self.at("^", "_"):
            if self.next().value == "_":
                base = self.argument() if not self.number_next() else self.deeper(self.atom)
            else:
                exponent = self.deeper(self.exponent)
        if exponent is not None and exponent == Node("neg", (number(1),)):
            name, exponent = "arc" + name, None
        node = self.apply(name, base)
        return node if exponent is None else Node("pow", (node, exponent))

    def number_next(self) -> bool:
        token = self.peek()
        return token is not None and token.kind == "number"

    def apply(self, name: str, base: Node | None) -> Node:
        if self.at("(", "[", "{"):
            opener = self.next().value
            args = self.arguments(_CLOSERS[opener])
        else:
            args = (self.deeper(self.bare_argument),)
        if name == "log" and base is not None:
            return Node("fn", (*args, base), "log_base")
        if base is not None:
            raise UnreadableError(f"a subscript of {name}")
        return Node("fn", args, name)

    def bare_argument(self) -> Node:
        """The argument of a function without brackets: the factors that follow, up to a sign or a function."""
        if self.at("-"):
            self.next()
            return Node("neg", (self.deeper(self.bare_argument),))
        node = self.power()
        while self.starts_factor():
            token = self.peek()
            if token is not None and (token.value in FUNCTIONS or token.value in ("(", "[", "|")):
                break
            node = Node("mul", (node, self.power()))
        return node


def _letters(node: Node) -> str:
    """The name under a bar, such as AB: a product of symbols."""
    if node.op == "mul":
        return _letters(node.args[0]) + _letters(node.args[1])
    if node.op != "sym":
        raise UnreadableError("a decoration over an expression")
    return str(node.value)
