#!/usr/bin/env bash
# transformers 5.19.0 and 5.24.0: AutoTokenizer ignores the pipeline in tokenizer.json where the folder's config.json
# names a family with a tokenizer class of its own.
#
# A word-level tokenizer is saved (its tokenizer_config.json says "tokenizer_class": "TokenizersBackend") beside a
# config.json of model_type qwen2, as anybody does who trains a small model of that shape. One would guess that
# AutoTokenizer reads what tokenizer.json says. It builds Qwen2Tokenizer instead: a BPE model with this vocabulary and no
# merges, behind Qwen2's own pre-tokenizer. No error, no warning: every text becomes nothing at all, while
# PreTrainedTokenizerFast.from_pretrained on the same folder is right.
#
# Seen on 2026-11-29:
#   5.19.0 saved    [3, 4]
#   5.19.0 direct   TokenizersBackend [3, 4]
#   5.19.0 auto     Qwen2Tokenizer []
#   5.24.0 saved    [3, 4]
#   5.24.0 direct   TokenizersBackend [3, 4]
#   5.24.0 auto     Qwen2Tokenizer []
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

place = Path(sys.argv[1])
place.mkdir()
words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2, "two": 3, "three": 4}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
saved = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>")
saved.save_pretrained(place)
(place / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
version, text = transformers.__version__, "two three"
print(version, "saved   ", saved(text)["input_ids"])
found = {}
for name, loader in (("direct", PreTrainedTokenizerFast), ("auto", AutoTokenizer)):
    loaded = loader.from_pretrained(place)
    found[name] = loaded(text)["input_ids"]
    print(version, f"{name:8}", type(loaded).__name__, found[name])
sys.exit(0 if found == {"direct": [3, 4], "auto": []} else 1)
PYTHON

changed=0
for version in 5.19.0 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
    HF_HUB_OFFLINE=1 "$folder/$version/bin/python" "$folder/see.py" "$folder/model-$version" 2>/dev/null || changed=1
done
[ "$changed" = 0 ] || echo "the behaviour has changed"
exit "$changed"
