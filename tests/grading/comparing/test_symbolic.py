"""Sums, integrals and limits beside each other: what cannot be told apart for certain is no match."""

import pytest

from app.grading.comparing.symbolic import parse_symbolic
from app.grading.matching import judge, spelling


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\int_0^1 x\,dx", r"\frac12"),
        (r"\int_0^1 x\,dx", "0.5"),
        (r"\int_0^R x\,dx", r"\frac{R^2}{2}"),
        (r"\int_{-1}^{1} x\,dx", "0"),
        (r"\int_{-1}^{1} |x|\,dx", "1"),
        (r"\int_0^\infty e^{-x^2}\,dx", r"\frac{\sqrt\pi}{2}"),
        (r"\int_0^1\int_0^1 xy\,dx\,dy", r"\frac14"),
        (r"\lim_{n\to\infty}(1+\frac1n)^n", "e"),
        ("e", r"\lim_{n\to\infty}(1+\frac{1}{n})^n"),
        (r"\lim_{x\to a} x^2", "a^2"),
        (r"\lim_{x\to 0^+}\frac1x", r"\infty"),
        (r"\lim_{x\to 0}\frac{M+x}{m}", r"\frac Mm"),
        (r"\sum_{k=0}^{\infty} x^k", r"\frac{1}{1-x}"),
    ],
)
def test_equal(gold: str, answer: str) -> None:
    assert judge(gold, answer, {}) == "match"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        # case
        (r"\lim_{x\to 0}\frac{M+x}{m}", "1"),
        (r"\int_0^R x\,dx", r"\int_0^r x\,dx"),
        (r"\int_0^R x\,dx", r"\frac{r^2}{2}"),
        (r"\lim_{x\to 0} M", "m"),
        # transposes, inverses, derivatives
        (r"\int_0^1 A^T\,dx", "A"),
        (r"\int_0^1 A^{T}\,dx", r"\int_0^1 A\,dx"),
        (r"\int_0^1 f^{-1}(x)\,dx", r"\int_0^1 \frac{1}{f(x)}\,dx"),
        (r"\int_0^1 f'(x)\,dx", r"\int_0^1 f x\,dx"),
        (r"\lim_{h\to 0} f(x+h)", r"\lim_{h\to 0} f \cdot (x+h)"),
        # what has no value
        (r"\lim_{x\to 0}\frac{1}{x}", r"\infty"),
        (r"\lim_{x\to 0}\frac{|x|}{x}", "1"),
        (r"\lim_{x\to\infty}\sin x", "0"),
        (r"\lim_{x\to 0}\frac{1}{x}", r"\lim_{t\to 0}\frac{1}{t}"),
        (r"\int_{-1}^{1}\frac{1}{x}\,dx", "0"),
        # plainly wrong
        (r"\int_0^1 x\,dx", r"\frac13"),
        (r"\int_0^1 x^{20}\,dx", "0"),
        (r"\lim_{x\to 0^-}\frac{1}{x}", r"\infty"),
        (r"\sum_{k=0}^{\infty} x^k", r"\frac{1}{1+x}"),
        (r"\int_0^x |t-1|\,dt", r"x-\frac{x^2}{2}"),  # equal below 1
        (r"\int_0^x |t|\,dt", r"\frac{x^2}{2}"),  # equal above 0
        (r"\int_0^x |t-30|\,dt", r"30x-\frac{x^2}{2}"),  # equal below 30
        (r"\{\lim_{x\to 0}\frac{1}{x}, 2\}", r"\{\infty, 2\}"),
    ],
)
def test_not_equal(gold: str, answer: str) -> None:
    assert judge(gold, answer, {}) != "match"


TEMPLATES = (
    r"\int_0^{FREE} BOUND\,dBOUND",
    r"\lim_{BOUND\to 0}\frac{BOUND+FREE}{2}",
    r"\sum_{BOUND=1}^{\infty}\frac{FREE}{2^BOUND}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_letters_case_and_name_count_unless_it_is_bound(template: str) -> None:
    def spelled(free: str, bound: str) -> str:
        return template.replace("FREE", free).replace("BOUND", bound)

    for letter, other in (("a", "A"), ("R", "r"), ("p", "q")):
        assert judge(spelled(letter, "k"), spelled(other, "k"), {}) == "mismatch"
    assert judge(spelled("a", "k"), spelled("a", "j"), {}) == "match"


@pytest.mark.parametrize(
    "text",
    [r"\int_0^1 A^T\,dx", r"\int_0^1 f^{-1}(x)\,dx", r"\lim_{x\to 0}\frac{1}{x}", r"\int_0^1 f'(x)\,dx"],
)
def test_what_is_misread_or_has_no_value_is_still_a_gold_answer_that_its_own_spelling_matches(text: str) -> None:
    assert parse_symbolic(spelling(text)) is not None
    assert judge(text, None, {}) == "mismatch"
    assert judge(text, text.replace(r"\,", " "), {}) == "match"
