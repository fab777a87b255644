#!/usr/bin/env bash
# math-verify 0.9.0 with latex2sympy2-extended 1.11.0: what is wrong is verified, for the grammar reads another expression.
#
# math-verify is the judge of many rewards and leaderboards. One would guess that what its grammar does not know it refuses.
# Of calculus it drops or changes parts without a word, before sympy compares anything:
#   - letters lose their case: the integral to R is that to r, and (M+x)/m at x = 0 is 1
#   - a prime is dropped: f'(x) is f·x, and 2x' is 2x
#   - a transpose is dropped: A^T is A
#   - f^{-1}(x) is 1/f(x)
#   - a limit without a side is one from above: 1/x at 0 is infinity, |x|/x at 0 is 1
# A model that is rewarded by it is paid for each of these.
#
# Seen on 2026-11-29 (True: verified as equal):
#   \int_0^R x\,dx              \int_0^r x\,dx                  True
#   \lim_{x\to 0}\frac{M+x}{m}  1                               True
#   2x'                         2x                              True
#   A^T                         A                               True
#   \int_0^1 f^{-1}(x)\,dx      \int_0^1 \frac{1}{f(x)}\,dx     True
#   \lim_{x\to 0}\frac{1}{x}    \infty                          True
#   \lim_{x\to 0}\frac{|x|}{x}  1                               True
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import sys

from math_verify import LatexExtractionConfig, parse, verify

PAIRS = (
    (r"\int_0^R x\,dx", r"\int_0^r x\,dx"),
    (r"\lim_{x\to 0}\frac{M+x}{m}", "1"),
    (r"2x'", "2x"),
    (r"A^T", "A"),
    (r"\int_0^1 f^{-1}(x)\,dx", r"\int_0^1 \frac{1}{f(x)}\,dx"),
    (r"\lim_{x\to 0}\frac{1}{x}", r"\infty"),
    (r"\lim_{x\to 0}\frac{|x|}{x}", "1"),
)
seen = []
for gold, answer in PAIRS:
    one, other = (parse(f"${text}$", extraction_config=[LatexExtractionConfig()]) for text in (gold, answer))
    seen.append(verify(one, other))
    print(f"{gold:27} {answer:31} {seen[-1]}  ({one[0]} | {other[0]})")
sys.exit(0 if all(seen) else 1)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check math-verify==0.9.0 latex2sympy2-extended==1.11.0 \
    sympy==1.14.0 antlr4-python3-runtime==4.9.3
"$folder/venv/bin/python" "$folder/see.py" 2>/dev/null || {
    echo "the behaviour has changed"
    exit 1
}
