#!/usr/bin/env bash
# transformers 5.19.0: a LLaMA or Qwen2 model in float64 computes its norms and rotations in float32.
#
# Whoever needs a reference for gradients, traces or log-probs turns a small model into float64 by .double() and expects 15
# digits. Weights, activations and logits are float64 indeed, but each RMSNorm and the table of rotations go through
# float32 inside: the logits are right to 7 digits. GPT-2, whose norms and positions are ordinary modules, has all its digits. There is no warning.
#
# The same model is evaluated on the same tokens with the two parts as they are and with both written out in float64.
#
# Seen on 2026-11-29 (largest difference of a logit, relative to the largest logit):
#   llama   torch.float64   7.4e-08
#   qwen2   torch.float64   7.5e-08
#   gpt2    torch.float64   3.3e-16
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES["num_key_value_heads"] = 2
SHAPES = {"llama": SIZES, "qwen2": SIZES, "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}}
SHAPES["gpt2"] |= {"bos_token_id": 0, "eos_token_id": 0}


class Norm(torch.nn.Module):
    """Root-mean-square or layer normalisation, in the dtype of what comes in."""

    def __init__(self, own):
        super().__init__()
        self.weight, self.bias = own.weight, getattr(own, "bias", None)
        self.epsilon = own.eps if self.bias is not None else own.variance_epsilon

    def forward(self, x):
        x = x if self.bias is None else x - x.mean(-1, keepdim=True)
        scaled = self.weight * x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return scaled if self.bias is None else scaled + self.bias


class Rotation(torch.nn.Module):
    """cos and sin of position times frequency, in float64."""

    def __init__(self, width, base):
        super().__init__()
        self.frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def forward(self, x, position_ids):
        angles = (position_ids.double()[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def written_out(model):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if "norm" in type(child).__name__.lower():
                setattr(parent, name, Norm(child))
            elif "Rotary" in type(child).__name__:
                setattr(parent, name, Rotation(16, 10000.0))
    return model


same = True
for kind, sizes in SHAPES.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).double().eval()
    ids = torch.randint(64, (2, 40))
    with torch.no_grad():
        own = model(ids).logits
        reference = written_out(model)(ids).logits
    error = float((own - reference).abs().max() / reference.abs().max())
    print(f"{kind:7} {own.dtype}   {error:.1e}")
    same &= error < 1e-14 if kind == "gpt2" else 1e-9 < error < 1e-5
sys.exit(0 if same else 1)
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "transformers==5.19.0"
changed=0
HF_HUB_OFFLINE=1 "$folder/env/bin/python" -W ignore "$folder/see.py" || changed=1
[ "$changed" = 0 ] || echo "the behaviour has changed"
exit "$changed"
