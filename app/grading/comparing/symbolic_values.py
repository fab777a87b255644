"""Values of sympy's sums, integrals and limits at points, where they have one that can be told for certain.

Nothing is simplified: two expressions are compared by their values, as the reader's own are (``numeric.py``). A value
is sympy's, evaluated strictly (which refuses what does not converge) or in closed form; a limit is one from both sides
where it is written without a sign.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from app.grading.comparing.numeric import UndecidableError

DIGITS = 15
"""To which values are evaluated."""
CLOSE = 1e-12
"""Relative difference of equal values."""
CLOSE_DECIMALS = 1e-9
"""The same where a decimal is among them, as for the reader's own numbers."""
DECIDED = 4
"""Points at which both sides must have values, where there are variables."""
_SCALES = ((1, 37), (1, 4), (-1, 37), (11, 1), (-1, 4), (1, 1), (1, 37), (-1, 37), (1, 4))
"""Factor and divisor of the numerators at each point: below 1 and above, far above, negative, and whole."""
_NUMERATORS = (3, 7, 11, 5, 13, 17, 19, 23, 29, 31)


def equal_values(first: Any, second: Any) -> bool:
    """Whether two sympy expressions have the same value wherever both have one, at enough points."""
    from sympy import Float

    names = sorted({symbol.name for each in (first, second) for symbol in each.free_symbols})
    close = CLOSE_DECIMALS if first.has(Float) or second.has(Float) else CLOSE
    decided = 0
    for point in _points(names):
        try:
            values = [value_at(each, point) for each in (first, second)]
            if names and any(value.is_infinite for value in values):
                continue  # beyond where a series converges
        except UndecidableError:
            continue
        if not _close(values[0], values[1], close):
            return False
        decided += 1
        if decided == (DECIDED if names else 1):
            return True
    return False


def value_at(expression: Any, point: Mapping[str, Any]) -> Any:
    """The number (or infinity) that ``expression`` is where its variables are those of ``point``.

    Raises:
        UndecidableError: it has none, or none that can be told.
    """
    from sympy.core.evalf import PrecisionExhausted

    failures = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
    try:
        placed = expression.subs({symbol: point[symbol.name] for symbol in expression.free_symbols})
        return _number(_evaluated(placed).evalf(DIGITS))
    except (*failures, PrecisionExhausted, RecursionError) as error:
        raise UndecidableError(str(error)) from error


def _evaluated(expression: Any) -> Any:
    """The expression with numbers in the place of its outermost sums, integrals and limits."""
    from sympy import Integral, Limit, Product, Sum

    if isinstance(expression, Limit):
        return _closed(expression)
    if isinstance(expression, Integral | Sum | Product):
        return _numeric(expression) if len(expression.limits) == 1 else _closed(expression)
    if not expression.has(Integral, Sum, Product, Limit):
        return expression
    return expression.func(*map(_evaluated, expression.args))


def _numeric(expression: Any) -> Any:
    from sympy.core.evalf import PrecisionExhausted

    try:
        found = expression.evalf(DIGITS, strict=True)
    except (PrecisionExhausted, ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return _closed(expression)
    return found if found.is_number and found.is_finite else _closed(expression)


def _closed(expression: Any) -> Any:
    """What sympy makes of it exactly; a limit that differs from side to side raises ValueError."""
    from sympy import Integral, Limit, Product, Sum

    found = expression.doit()
    if found.has(Integral, Limit, Product, Sum):
        raise UndecidableError(f"no closed form of {type(expression).__name__}")
    return found


def _number(value: Any) -> Any:
    from sympy import AccumBounds, nan, zoo

    if value.has(nan, zoo, AccumBounds) or not value.is_number:
        raise UndecidableError("no number")
    return value


def _close(first: Any, second: Any, close: float) -> bool:
    if first.is_infinite or second.is_infinite:
        return bool(first == second)
    return bool(abs(first - second) <= close * max(abs(first), abs(second)))


def _points(names: list[str]) -> Iterator[dict[str, Any]]:
    """Rational values, for each of the names another."""
    from sympy import Rational

    if not names:
        yield {}
        return
    for index, (factor, divisor) in enumerate(_SCALES):
        numerators = [_NUMERATORS[(place + index) % len(_NUMERATORS)] for place in range(len(names))]
        yield {name: Rational(factor * top, divisor) for name, top in zip(names, numerators, strict=True)}
