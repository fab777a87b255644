#!/usr/bin/env bash
# transformers 4.57.6 loads what transformers 5.19.0 has saved, without an error or a warning, as another model.
#
# transformers 5 writes the base and the scaling of rotary embeddings as "rope_parameters" alone. transformers 4 knows
# "rope_theta" and "rope_scaling", finds neither, and takes its defaults: base 10,000 in the place of the 500,000 of
# LLaMA 3 or the 1,000,000 of Qwen2. All weights match, so that the loading report is empty. One would guess that the
# folder of a LLaMA is readable by any transformers of the last years, or else refused; it is served as a model whose
# positions are wrong. (What else is new in the folder, the tokenizer's class, does raise an error there.)
#
# Seen on 2026-11-29:
#   5.19.0  rope {'rope_theta': 500000.0, 'rope_type': 'default'}
#   4.57.6  rope_theta 10000.0, missing or unexpected: [], log-probs off by up to 11.26 nats
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
import transformers

place, ids = Path(sys.argv[1]), torch.arange(64)[None]
if transformers.__version__.startswith("5."):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=64, rope_theta=5e5, initializer_range=0.3, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(place)
    torch.save(model(ids).logits.log_softmax(-1), place / "log_probs.pt")
    print(transformers.__version__, "rope", model.config.rope_parameters)
    sys.exit(0)
model, report = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
off = float((model(ids).logits.log_softmax(-1) - torch.load(place / "log_probs.pt")).abs().max())
wrong = [name for names in report.values() for name in names]
print(transformers.__version__, f"rope_theta {model.config.rope_theta}, missing or unexpected: {wrong}, log-probs off by up to {off:.2f} nats")
sys.exit(0 if model.config.rope_theta == 10000.0 and not wrong and off > 1 else 1)
PYTHON

python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 transformers==5.19.0 requests==2.32.5
"${pip[@]}" --target "$folder/older" --no-deps transformers==4.57.6 huggingface_hub==0.36.0 tokenizers==0.22.1
changed=0
for path in "" "$folder/older"; do
    PYTHONPATH="$path" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/see.py" "$folder/model" 2>/dev/null || changed=1
done
[ "$changed" = 0 ] || echo "the behaviour has changed"
exit "$changed"
