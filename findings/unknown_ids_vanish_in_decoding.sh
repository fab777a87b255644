#!/bin/sh
# transformers: a token id that the tokenizer does not know vanishes in decoding, also with skip_special_tokens=False.
#
# Qwen2.5's smaller models have 151,936 rows of embeddings; the ranks that the vendor ships and the special tokens fill
# fewer. A model at temperature 1 can draw an id out of the rest. One would expect an error, or a replacement character
# in the text. There is neither: decode and batch_decode leave the id out, whatever skip_special_tokens says, and
# convert_ids_to_tokens gives None for it. "\boxed{", 151800, "2}" reads \boxed{2}, so that whoever grades the text
# rewards what the model did not write. To see such ids, compare with get_vocab() before decoding.
#
# transformers 5.19.0, tokenizers 0.23.3, dashscope 2.0.2 (whose qwen.tiktoken holds the ranks), Python 3.11 and later.
# Seen: with special tokens kept: '\\boxed{2}<|im_end|>'; left out: '\\boxed{2}'; token of 151800: None
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check transformers==5.19.0 tokenizers==0.23.3 tiktoken==0.14.0
"$python" -m pip install --quiet --disable-pip-version-check --no-deps dashscope==2.0.2
"$python" - <<'PYTHON'
import importlib.util
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

package = importlib.util.find_spec("dashscope")
ranks = Path(package.origin).parent / "resources" / "qwen.tiktoken"
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
words = r"\p{L}+|\p{N}|\\?[^\s\p{L}\p{N}]+|\s+"
backend = TikTokenConverter(vocab_file=str(ranks), pattern=words, extra_special_tokens=special).converted()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=special)
ids = [*tokenizer("\\boxed{").input_ids, 151800, *tokenizer("2}").input_ids, 151645]
kept = tokenizer.decode(ids, skip_special_tokens=False)
left_out = tokenizer.batch_decode([ids], skip_special_tokens=True)[0]
name = tokenizer.convert_ids_to_tokens(151800)
print(f"tokens of the tokenizer: {len(tokenizer)}")
print(f"with special tokens kept: {kept!r}; left out: {left_out!r}; token of 151800: {name}")
sys.exit((kept, left_out, name) != ("\\boxed{2}<|im_end|>", "\\boxed{2}", None))
PYTHON
