"""Tokens → an expression tree. A recursive-descent parser for the algebra that answers are written in.

Implicit products, mixed numbers, TeX's unbraced arguments and functions without brackets are understood. Whatever is
not fully understood raises :class:`UnreadableError`: no part of an answer is ever dropped.
"""

from app.grading.answer_types import Node, number
from app.grading.comparing.numeric import free_symbols
from app.grading.reading.differentials import mark_differentials
from app.grading.reading.lexer import Token, UnreadableError, expand_words
from app.grading.reading.numerals import NumeralParser
from app.grading.reading.splitting import closing_index
from app.grading.vocabulary import FUNCTIONS, GREEK, names

#: Bound on the size of a tree, which later steps walk recursively.
MAX_TOKENS = 300

_DECORATIONS = names("overline bar tilde dot ddot hat widehat widetilde check acute grave breve")
_CLOSERS = {"(": ")", "[": "]", "{": "}", "⌊": "⌋", "⌈": "⌉", "\\{": "\\}"}
_WRAPPERS = {"⌊": "floor", "⌈": "ceil"}
_APPLIED = frozenset("fghFGH")
_PRODUCT_SIGNS = frozenset(("times", "cdot"))
_SERIES = names("sum prod")
#: Letters that stand for a number, so that brackets after them hold a factor.
_NUMBERS = names("e i")


def parse_expression(tokens: list[Token]) -> Node:
    """The tree of all the tokens; :class:`UnreadableError` where they are no expression."""
    expanded = mark_differentials(expand_words(tokens))
    if len(expanded) > MAX_TOKENS:
        raise UnreadableError("too long")
    parser = _Parser(expanded)
    tree = parser.sum()
    if parser.position != len(parser.tokens):
        raise UnreadableError(f"unexpected {parser.tokens[parser.position].value!r}")
    return tree


class _Parser(NumeralParser):
    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.open_bars = 0

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
            elif self.at("cross", kind="command"):  # does not commute
                self.next()
                node = Node("apply", (node, self.signed()), "×")
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
        if token is None:
            return False
        if token.kind == "number" and self.tokens[self.position - 1].kind == "number":
            return self.position > 1 and self.tokens[self.position - 2].value == "_"  # N_0 2^{-t}
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
        if self.at("(") and self.is_application(name):
            self.next()
            arguments = self.arguments(")")
            if name == "C" and len(arguments) == 2:
                return Node("fn", arguments, "binomial")
            return Node("apply", arguments, name)
        return Node("sym", value=name)

    def is_application(self, name: str) -> bool:
        """Whether the brackets that follow a letter hold an argument: after f, g, h always; after other letters
        where they hold one number or letter (``I(0)``, ``x(t)``), or several with commas between. A number with an
        exponent after the brackets, as in ``n(-1)^n``, is a factor."""
        if name in _NUMBERS or (self.tokens[self.position].spaced and self.tokens[self.position - 1].kind == "word"):
            return False
        if name[0] in _APPLIED:
            return True
        end = self.position + closing_index(self.tokens[self.position :])
        inside = self.tokens[self.position + 1 : end]
        if any(token.kind == "char" and token.value == "," for token in inside):
            return True
        if inside and inside[0].value in ("+", "-"):
            inside = inside[1:]
        raised = [token.value for token in self.tokens[end + 1 : end + 2]] == ["^"]
        if len(inside) != 1 or (inside[0].kind == "number" and raised and inside[0].value.strip("0.")):
            return False
        return inside[0].kind != "char"

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
        if name in _SERIES:
            return self.series(name)
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

    def series(self, name: str) -> Node:
        """A sum or product over a named index; where it is infinite, of numbers. Others are for math-verify."""
        limits = {}
        while self.at("_", "^"):
            sign = self.next().value
            limits[sign] = self.index_and_start() if sign == "_" else (None, self.argument_in_full())
        if limits.keys() != {"_", "^"}:
            raise UnreadableError("a sum without limits")
        (index, low), (_, high) = limits["_"], limits["^"]
        body = self.deeper(self.product)
        series = Node(name, (low, high, _with_terms(body, str(index))), index)
        if high.value == "∞" and (name == "prod" or free_symbols(series)):
            raise UnreadableError("an infinite product, or an infinite sum with variables")
        return series

    def index_and_start(self) -> tuple[str, Node]:
        """``{k=1}``"""
        self.expect("{")
        index = self.next()
        if index.kind != "word" or not self.at("=", kind="relation"):
            raise UnreadableError("a sum over something else than an index")
        self.next()
        low = self.deeper(self.sum)
        self.expect("}")
        return index.value, low

    def argument_in_full(self) -> Node:
        """An argument whose digits are not split: ``^10`` after a sum means ten."""
        return self.deeper(self.atom if self.number_next() else self.argument)

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


def _with_terms(node: Node, index: str) -> Node:
    """The terms of a sum with ``a_k`` as an unknown function of the index."""
    if node.op == "sym":
        letter, _, subscript = str(node.value).partition("_")
        if subscript == index:
            return Node("apply", (Node("sym", value=index),), f"{letter}_")
        if index in subscript:
            raise UnreadableError("a term with a composed subscript")
        return node
    return Node(node.op, tuple(_with_terms(each, index) for each in node.args), node.value)


def _letters(node: Node) -> str:
    """The name under a bar, such as AB: a product of symbols."""
    if node.op == "mul":
        return _letters(node.args[0]) + _letters(node.args[1])
    if node.op != "sym":
        raise UnreadableError("a decoration over an expression")
    return str(node.value)
