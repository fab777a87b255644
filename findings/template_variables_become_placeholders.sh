#!/usr/bin/env bash
# transformers 5.21.1 and 5.22.2: a variable of a chat template that is no plain JSON value becomes a text such as
# "<date>", in the prompt, without a word.
#
# Templates of LLaMA 3 print `date_string`, and many ask the function `strftime_now`. One would hand over a
# datetime.date, and pin the clock by giving a function of that name: a variable goes before the function that
# transformers defines. Up to 5.21 both worked. From 5.22 on everything that a template sees is rebuilt of plain values:
# the date is printed as its type's name in angle brackets, and the function is a text as well, so that calling it ends
# in "TypeError: 'str' object is not callable".
#
# Seen on 2026-11-29:
#   5.21.1 date: 2024-07-26  clock: 26 Jul 2024
#   5.22.2 date: <date>  clock: TypeError: 'str' object is not callable
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import datetime
import sys

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

day = datetime.date(2024, 7, 26)


def rendered(template: str) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "a"}]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, date_string=day, strftime_now=day.strftime)
    except TypeError as error:
        return f"TypeError: {error}"


found = (rendered("{{ date_string }}"), rendered("{{ strftime_now('%d %b %Y') }}"))
print(f"{transformers.__version__} date: {found[0]}  clock: {found[1]}")
expected = {
    "5.21.1": ("2024-07-26", "26 Jul 2024"),
    "5.22.2": ("<date>", "TypeError: 'str' object is not callable"),
}
sys.exit(0 if found == expected[transformers.__version__] else 1)
PYTHON

changed=0
for version in 5.21.1 5.22.2; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" jinja2
    HF_HUB_OFFLINE=1 "$folder/$version/bin/python" "$folder/see.py" 2>/dev/null || changed=1
done
[ "$changed" = 0 ] || echo "the behaviour has changed"
exit "$changed"
