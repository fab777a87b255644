#!/usr/bin/env bash
# datasets 5.2.0: one bare number in a JSON-lines file changes the other rows' text.
#
# A file of math problems has answers as strings; in one row the answer is the number 7. datasets makes it a column of its
# Json type, without a word. One would guess that strings come back as the strings they were, or that the file is refused.
# Only strings that are no JSON do: "12" comes back as the integer 12, "007" as 7 (which is no JSON either), "true" as
# True, "[0,1]" (an interval) as a list, "1e5" as 100000.0, and "null" as None, an answer that is missing. A row filter, a
# join on the answer or a comparison of strings is then wrong for 7,707 of 12,000 answers of MATH.
# JSON text is kept as it stands and other text as a JSON string, so that cast_column(name, Value("string")) gives the
# text back, with quotes around what was no JSON.
#
# Seen on 2026-11-29:
#   5.2.0 without the number  ['12', '007', 'true', '[0,1]', '1e5', 'null', '\\frac12'] Value('string')
#   5.2.0 with one number     [12, 7, True, [0, 1], 100000.0, None, '\\frac12', 7] Json(decode=True)
#   5.2.0 streamed            [12, 7, True, [0, 1], 100000.0, None, '\\frac12', 7]
#   5.2.0 cast to string      ['12', '007', 'true', '[0,1]', '1e5', 'null', '"\\\\frac12"', '7']
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets
from datasets import Value, load_dataset

datasets.disable_progress_bars()
place = Path(sys.argv[1])
version, text = datasets.__version__, ["12", "007", "true", "[0,1]", "1e5", "null", "\\frac12"]


def read(name, answers, **options):
    path = place / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(place / "cache"), **options)


plain = read("plain", text)
print(version, "without the number ", plain["answer"][:], plain.features["answer"])
mixed = read("mixed", [*text, 7])
print(version, "with one number    ", mixed["answer"][:], mixed.features["answer"])
streamed = [row["answer"] for row in read("mixed", [*text, 7], streaming=True)]
print(version, "streamed           ", streamed)
cast = mixed.cast_column("answer", Value("string"))["answer"][:]
print(version, "cast to string     ", cast)
decoded = [12, 7, True, [0, 1], 100000.0, None, "\\frac12", 7]
as_seen = plain["answer"][:] == text and mixed["answer"][:] == streamed == decoded
sys.exit(0 if as_seen and cast == [*text[:-1], json.dumps(text[-1]), "7"] else 1)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" "$folder/see.py" "$folder" || {
    echo "the behaviour has changed"
    exit 1
}
