"""math-verify as the judge of what the project's own reader does not understand: sums, integrals, limits …

Both texts must parse as a whole. The text goes to the LaTeX grammar alone, never to ``sympify`` or ``parse_expr``,
which evaluate Python; the grammar's number tokens are digits.
"""

import re
from typing import Any

from app.grading.vocabulary import CURRENCY, GROUP_MARK, ROW_MARK

#: Commands that only math-verify's grammar knows; without one, a text that cannot be read is not mathematics.
_HIGHER = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|max|min|gcd|lcm|det|bmod|mod|pmod|partial|begin|overline|mathbb|cap|cup|"
    r"setminus|prime|infty|forall|exists|det|operatorname|dots|ldots|cdots)(?![A-Za-z])"
)
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


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
    from latex2sympy2_extended import latex2sympy
    from math_verify.parser import should_treat_as_complex

    text = normalised.replace(GROUP_MARK, "").replace(ROW_MARK, r"\\")
    try:
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), convert_degrees=False, normalization_config=None
        )
    except Exception as error:
        # the grammar raises bare ``Exception`` for a syntax error
        if type(error) is Exception or isinstance(error, _FAILURES):
            return None
        raise


def _has_unknown_terms(text: str) -> bool:
    """Whether a letter's subscript holds the index of a sum, as in ``a_{k+1}``, which the grammar takes for fixed."""
    for index in re.findall(r"\\(?:sum|prod)\s*_\s*\{?\s*([A-Za-z])\s*=", text):
        if re.search(rf"[A-Za-z]\s*_\s*(?:\{{[^{{}}=]*)?{index}(?![^{{}}]*=)", re.sub(r"\\(?:sum|prod)\s*_", "", text)):
            return True
    return False


def equal_symbolic(gold: Any, answer: Any) -> bool:
    """math-verify's verdict; a worker's parent limits its time, so its own alarm is off."""
    from math_verify import verify

    return bool(verify(gold, answer, float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None))
