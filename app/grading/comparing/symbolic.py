"""math-verify's grammar, for what the project's own reader does not understand: sums, integrals, limits …

Both texts must parse as a whole. The text goes to the LaTeX grammar alone, never to ``sympify`` or ``parse_expr``,
which evaluate Python; the grammar's number tokens are digits. What the grammar takes for something else than it says
(:data:`MISREAD`) equals nothing but its own spelling. Expressions are compared by their values; math-verify's own
comparison, which simplifies, judges sets and the like where no sum, integral or limit is in them.
"""

import re
from typing import Any

from app.grading.comparing.symbolic_values import equal_values
from app.grading.vocabulary import CURRENCY, GROUP_MARK, ROW_MARK

#: Commands that only math-verify's grammar knows; without one, a text that cannot be read is not mathematics.
_HIGHER = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|max|min|gcd|lcm|det|bmod|mod|pmod|partial|begin|overline|mathbb|cap|cup|"
    r"setminus|prime|infty|forall|exists|det|operatorname|dots|ldots|cdots)(?![A-Za-z])"
)
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

MISREAD = re.compile(
    r"'|\\prime"  # primes are dropped
    r"|\^\s*\{?\s*(?:T|\\top|\\intercal)(?![A-Za-z])"  # a transpose is dropped, or a power
    r"|\^\s*\{\s*\("  # f^{(3)}, a derivative, as a power
    r"|(?<![A-Za-z\\])[fghFGH]\s*\^\s*\{?\s*-"  # f^{-1} as 1/f
    r"|(?<![A-Za-z\\])[fghFGH]\s*\((?!\s*[A-Za-z]\s*\))"  # f(x+h) as a product
    r"|(?<![A-Za-z\\])I(?![A-Za-z])"  # a letter, not the imaginary unit
    r"|\\(?:dots|ldots|cdots|partial)(?![A-Za-z])"
)
"""What the grammar reads as something else."""

_BARE_SIDE = re.compile(r"\^\s*([+-])(?=\s*\})")  # x \to 0^+
_SIDE = re.compile(r"\^\s*\{\s*[+-]\s*\}")
_ONE_TOKEN = r"(?:\\[A-Za-z]+|[0-9A-Za-z])"
_UNBRACED = re.compile(rf"\\(frac|binom)\s*(\{{[^{{}}]*\}}|{_ONE_TOKEN})\s*(\{{[^{{}}]*\}}|{_ONE_TOKEN})")
_UNBRACED_ROOT = re.compile(rf"\\sqrt\s*({_ONE_TOKEN})")


def preload() -> None:
    """Imports and first-call costs of the symbolic libraries, ahead of the first answer that needs them."""
    parse_symbolic(r"\sum_{k=1}^{n} k")


def parse_symbolic(normalised: str, any_command: bool = False) -> Any | None:
    """The sympy object for normalised text; None where the grammar does not take all of it.

    Text without higher mathematics is refused, for what the reader refused of it was refused for a reason;
    ``any_command`` admits it, as the other side of a comparison with text that has it.
    """
    if _has_unknown_terms(normalised):
        return None
    if not (any_command or _HIGHER.search(normalised)) or any(mark in normalised for mark in CURRENCY.values()):
        return None
    found = _parse(_braced(normalised.replace(GROUP_MARK, "").replace(ROW_MARK, r"\\")))
    if found is not None and MISREAD.search(normalised):
        return Misread()
    return found


class Misread:
    """Text that the grammar takes for something else; equal to nothing."""


def _parse(text: str) -> Any | None:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.parser import should_treat_as_complex

    try:
        found = latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception as error:
        # the grammar raises bare ``Exception`` for a syntax error
        if type(error) is Exception or isinstance(error, _FAILURES):
            return None
        raise
    return found if _SIDE.search(text) or not hasattr(found, "replace") else _two_sided(found)


def _two_sided(found: Any) -> Any:
    """The grammar takes a limit that names no side for one from above."""
    from sympy import Limit

    def both(limit: Any) -> Any:
        expression, variable, place, _ = limit.args
        return limit if place.is_infinite else Limit(expression, variable, place, dir="+-")

    return found.replace(lambda each: isinstance(each, Limit), both)


def _braced(text: str) -> str:
    """Braces around the arguments of fractions and roots, and the sign of a limit's side, which the grammar needs."""
    text = _UNBRACED_ROOT.sub(r"\\sqrt{\1}", _BARE_SIDE.sub(r"^{\1}", text))
    return _UNBRACED.sub(lambda found: rf"\{found[1]}{_group(found[2])}{_group(found[3])}", text)


def _group(argument: str) -> str:
    return argument if argument.startswith("{") else f"{{{argument}}}"


def _has_unknown_terms(text: str) -> bool:
    """Whether a letter's subscript holds the index of a sum, as in ``a_{k+1}``, which the grammar takes for fixed."""
    for index in re.findall(r"\\(?:sum|prod)\s*_\s*\{?\s*([A-Za-z])\s*=", text):
        if re.search(rf"[A-Za-z]\s*_\s*(?:\{{[^{{}}=]*)?{index}(?![^{{}}]*=)", re.sub(r"\\(?:sum|prod)\s*_", "", text)):
            return True
    return False


def equal_symbolic(gold: Any, answer: Any) -> bool:
    """Whether two sympy objects are equal for certain; a worker's parent limits the time."""
    from sympy import Expr, Integral, Limit, MatrixBase, Product, Sum, Tuple

    if isinstance(gold, Misread) or isinstance(answer, Misread):
        return False
    if isinstance(gold, Expr) and isinstance(answer, Expr):
        return _same_but_for_names(gold, answer) or equal_values(gold, answer)
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return gold.shape == answer.shape and all(map(equal_symbolic, gold, answer))
    if isinstance(gold, Tuple | tuple) and isinstance(answer, Tuple | tuple):
        return len(gold) == len(answer) and all(map(equal_symbolic, gold, answer))
    if any(hasattr(each, "has") and each.has(Integral, Limit, Product, Sum) for each in (gold, answer)):
        return False
    from math_verify import verify

    return bool(verify(gold, answer, float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None))


def _same_but_for_names(gold: Any, answer: Any) -> bool:
    """Whether two expressions are alike but for the names of their bound variables, and have a meaning at all."""
    from sympy import Limit, Symbol

    if gold.has(Limit):
        return False
    first, second = (
        each.xreplace({symbol: Symbol(symbol.name) for symbol in each.atoms(Symbol)}).as_dummy()
        for each in (gold, answer)
    )
    return bool(first == second)
