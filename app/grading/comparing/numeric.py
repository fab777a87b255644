"""Values of expression trees: exact fractions where they exist, else numbers of many digits. All work is bounded."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from app.grading.answer_types import Node
from app.grading.vocabulary import names

MAX_BITS = 100_000
#: Bits that the magnitude of an intermediate value may have before it counts as undecidable.
MAX_EXPONENT = 200_000
MAX_FACTORIAL = 10_000
#: Terms that one evaluation adds up or multiplies.
MAX_TERMS = 5000


_CONSTANTS = frozenset(("π", "e", "i", "∞"))


class UndecidableError(ValueError):
    """The value is too large, or not defined."""


def free_symbols(node: Node) -> set[str]:
    """The names of the variables and of unknown functions (``f()``); constants such as π and the index of a sum are
    not among them."""
    if node.op == "sym":
        return set() if node.value in _CONSTANTS else {str(node.value)}
    if node.op in ("sum", "prod"):
        low, high, body = map(free_symbols, node.args)
        return low | high | (body - {str(node.value)})
    own = {f"{node.value}()"} if node.op == "apply" else set()
    return own.union(*(free_symbols(each) for each in node.args))


def exact_value(node: Node) -> Fraction | None:
    """The value as a fraction, or None where it is irrational, symbolic, undefined or longer than ``MAX_BITS``."""
    if node.op in ("num", "dec"):
        return node.value if isinstance(node.value, Fraction) else None
    rule = _EXACT.get(node.op)
    if rule is None and not (node.op == "fn" and node.value in _EXACT_FUNCTIONS):
        return None
    values = [exact_value(each) for each in node.args]
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    result = rule(*known) if rule else _EXACT_FUNCTIONS[str(node.value)](*known)
    return result if result is None or _bits(result) <= MAX_BITS else None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(exponent.denominator, base, exponent.numerator)
    power = exponent.numerator
    if base == 0:
        return Fraction(0) if power > 0 else None
    if base not in (1, -1) and abs(power) * _bits(base) > MAX_BITS:
        return None
    return base**power if abs(base) != 1 else Fraction(-1 if base < 0 and power % 2 else 1)


def _exact_root(degree: int, base: Fraction, power: int = 1) -> Fraction | None:
    if base < 0 or degree > 64 or _bits(base) > 4096:
        return None
    top, bottom = _integer_root(base.numerator, degree), _integer_root(base.denominator, degree)
    return None if top is None or bottom is None else _exact_power(Fraction(top, bottom), Fraction(power))


def _integer_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == value else None


def _exact_factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        return None
    return Fraction(math.factorial(int(value)))


def _exact_binomial(top: Fraction, bottom: Fraction) -> Fraction | None:
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= bottom <= top <= MAX_FACTORIAL:
        return None
    return Fraction(math.comb(int(top), int(bottom)))


def _integers(operation: Callable[..., int]) -> Callable[..., Fraction | None]:
    def apply(*values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(operation(*map(int, values)))

    return apply


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda a, b: a + b,
    "neg": lambda a: -a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if b else None,
    "pow": _exact_power,
    "root": lambda degree, base: _exact_root(int(degree), base) if degree.denominator == 1 and degree > 0 else None,
}
_EXACT_FUNCTIONS: dict[str, Callable[..., Fraction | None]] = {
    "abs": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "factorial": _exact_factorial,
    "binomial": _exact_binomial,
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
    "sgn": lambda a: Fraction((a > 0) - (a < 0)),
}


class Evaluator:
    """Evaluates trees with mpmath at the context's precision, the symbols' values given.

    Attributes:
        scale: the largest intermediate magnitude met, which tells how many digits a difference can be trusted to.
        left_reals: whether an operation on real numbers that a variable takes part in was not real.
    """

    def __init__(self, context: Any, symbols: Mapping[str, Any], log_base: int | None = None) -> None:
        self.mp = context
        self.symbols = symbols
        self.log_base = log_base
        self.scale = context.mpf(1)
        self.left_reals = False
        self.terms = 0

    def __call__(self, node: Node) -> Any:
        """The value, real or complex; :class:`UndecidableError` where it is not finite or too large."""
        if node.op in ("num", "dec"):
            assert isinstance(node.value, Fraction)
            value = self.mp.mpf(node.value.numerator) / node.value.denominator
        elif node.op == "sym":
            value = self._symbol(str(node.value))
        elif node.op in ("sum", "prod"):
            value = self._series(node)
        else:
            args = [self(each) for each in node.args]
            value = self._operation(node, args)
            if self.mp.im(value) and not any(map(self.mp.im, args)) and free_symbols(node):
                self.left_reals = True
        return self._bounded(value)

    def _series(self, node: Node) -> Any:
        """A finite sum or product term by term; an infinite one by extrapolation, which is exact to nearly all digits
        or wrong from the first on."""
        low = self(node.args[0])
        if node.args[1].value == "∞":
            return self._infinite(node, low)
        high = self(node.args[1])
        if not (self.mp.isint(low) and self.mp.isint(high) and low <= high + 1):
            raise UndecidableError("limits that are no whole numbers in order")
        self.terms += int(high - low) + 1
        if self.terms > MAX_TERMS:
            raise UndecidableError("too many terms")
        total = self.mp.mpf(node.op == "prod")
        for index in range(int(low), int(high) + 1):
            term = self._term(node, self.mp.mpf(index))
            total = self._bounded(total + term if node.op == "sum" else total * term)
        return total

    def _term(self, node: Node, index: Any) -> Any:
        outer = self.symbols
        self.symbols = {**outer, str(node.value): index}
        value = self(node.args[2])
        self.symbols = outer
        return value

    def _infinite(self, node: Node, low: Any) -> Any:
        if node.op != "sum" or not self.mp.isint(low):
            raise UndecidableError("an infinite product")
        scale = self.scale
        try:
            return self.mp.nsum(lambda index: self._term(node, index), [low, self.mp.inf], method="r+s")
        except (ZeroDivisionError, OverflowError, ValueError, self.mp.NoConvergence) as error:
            raise UndecidableError(str(error)) from error
        finally:  # a large n! below a fraction bar costs the sum no digits
            self.scale = scale

    def _bounded(self, value: Any) -> Any:
        if not self.mp.isfinite(value) or self.mp.mag(value) > MAX_EXPONENT:
            raise UndecidableError("not finite")
        if self.mp.mag(value) > self.mp.mag(self.scale):
            self.scale = abs(value)
        return value

    def _symbol(self, name: str) -> Any:
        if name in self.symbols:
            return self.symbols[name]
        constants = {"π": self.mp.pi, "e": self.mp.e, "i": self.mp.j}
        if name not in constants:
            raise UndecidableError(f"no value for {name}")
        return +constants[name]

    def _operation(self, node: Node, args: list[Any]) -> Any:
        try:
            if node.op == "apply":
                return self._unknown_function(str(node.value), args)
            name = str(node.value) if node.op == "fn" else node.op
            rule = getattr(self, "_" + name, None)
            return rule(*args) if rule else self._library(name)(*args)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError, NotImplementedError) as error:
            raise UndecidableError(str(error)) from error

    def _unknown_function(self, name: str, args: list[Any]) -> Any:
        """A function without special properties stands for an unknown one, at every point another."""
        phase = sum(map(ord, name)) / 7 + self.symbols.get(f"{name}()", 0)
        return sum((self.mp.sin(x * (k + 1.3) + phase) + x * phase for k, x in enumerate(args)), self.mp.mpf(0))

    def _library(self, name: str) -> Callable[..., Any]:
        mpmath_name = _LIBRARY.get(name)
        if mpmath_name is None:
            raise UndecidableError(f"no rule for {name}")
        return self._guarded(getattr(self.mp, mpmath_name))

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*args: Any) -> Any:
            if any(self.mp.mag(x) > 60 for x in args if x):
                raise UndecidableError("argument too large")
            return function(*args)

        return apply

    def _add(self, a: Any, b: Any) -> Any:
        return a + b

    def _neg(self, a: Any) -> Any:
        return -a

    def _mul(self, a: Any, b: Any) -> Any:
        return a * b

    def _div(self, a: Any, b: Any) -> Any:
        return a / b

    def _pow(self, base: Any, exponent: Any) -> Any:
        if base and self.mp.mag(exponent) + self._log_magnitude(base) > MAX_EXPONENT.bit_length():
            raise UndecidableError("power too large")
        return self.mp.power(base, exponent)

    def _log_magnitude(self, base: Any) -> int:
        return max(abs(int(self.mp.mag(base))), 1).bit_length() if abs(base) != 1 else -(10**6)

    def _root(self, degree: Any, base: Any) -> Any:
        if self.mp.im(base) == 0 and self.mp.re(base) < 0 and self.mp.isint(degree) and int(degree) % 2:
            return -self.mp.power(-self.mp.re(base), 1 / degree)  # the real root, which is what is meant
        return self.mp.power(base, 1 / degree)

    def _log(self, x: Any) -> Any:
        return self.mp.log(x) / (self.mp.log(self.log_base) if self.log_base else 1)

    def _cis(self, x: Any) -> Any:
        return self.mp.expj(x)

    def _lg(self, x: Any) -> Any:
        return self.mp.log(x) / self.mp.log(10)

    def _log_base(self, x: Any, base: Any) -> Any:
        return self.mp.log(x) / self.mp.log(base)

    def _abs(self, x: Any) -> Any:
        return abs(x)

    def _max(self, *values: Any) -> Any:
        return max(values)

    def _min(self, *values: Any) -> Any:
        return min(values)

    def _floor(self, x: Any) -> Any:
        return self.mp.floor(self._snapped(x))

    def _ceil(self, x: Any) -> Any:
        return self.mp.ceil(self._snapped(x))

    def _snapped(self, x: Any) -> Any:
        """A whole number in place of a value that differs from it by errors of rounding, such as log_2 8."""
        whole = self.mp.nint(x)
        return whole if abs(x - whole) < self.mp.mpf(10) ** (15 - self.mp.dps) * (1 + abs(x)) else x

    def _exp(self, x: Any) -> Any:
        if self.mp.mag(x) > 17:
            raise UndecidableError("power too large")
        return self.mp.exp(x)

    def _factorial(self, x: Any) -> Any:
        if abs(x) > MAX_FACTORIAL:
            raise UndecidableError("factorial too large")
        return self.mp.factorial(x)

    def _binomial(self, n: Any, k: Any) -> Any:
        if max(abs(n), abs(k)) > MAX_FACTORIAL:
            raise UndecidableError("binomial too large")
        return self.mp.binomial(n, k)


_LIBRARY = {name: name for name in names("sin cos tan cot sec csc sinh cosh tanh coth sech csch erf arg re im")} | {
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arccot": "acot",
    "arcsec": "asec",
    "arccsc": "acsc",
    "arsinh": "asinh",
    "arcsinh": "asinh",
    "arcosh": "acosh",
    "arccosh": "acosh",
    "artanh": "atanh",
    "arctanh": "atanh",
    "ln": "log",
    "sgn": "sign",
    "Re": "re",
    "Im": "im",
    "factorial2": "fac2",
}
