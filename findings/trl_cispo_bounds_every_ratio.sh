#!/usr/bin/env bash
# TRL 1.16.0: loss_type="cispo" with the other options left alone bounds every importance ratio to 0.2.
#
# For the PPO-like losses epsilon_high = 0.2 lets a ratio rise to 1 + 0.2. For "cispo" the same option is the bound itself,
# and its default stays 0.2. One would guess that the choice of a loss brings a default with which it works, or at least
# that a policy that has not moved, whose ratios all are 1, is clipped nowhere. It is clipped at every token with a positive
# advantage, on the very first step; all tokens then have the weight 0.2 unless their ratio is below that, so that the
# ratio, which is what CISPO is about, is out of the loss. There is no warning: the documentation of epsilon_high
# recommends 5.0 for it in its last sentence.
#
# Seen on 2026-11-29 (gradient norms of one step on the same completions; the learning rate is 0):
#   epsilon_high    ratios clipped        gradient norm, as a share of that with 5.0
#   default         0.6667                0.2000
#   0.28            0.6667                0.2800
#   5.0             0.0000                1.0000
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/see.py" <<'PYTHON'
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config
from trl import GRPOConfig, GRPOTrainer

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
special = {"eos_token": "w1", "pad_token": "w2", "unk_token": "w0"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
config = Qwen2Config(vocab_size=64, num_key_value_heads=2, eos_token_id=1, pad_token_id=2, **sizes)


def even_words(completions, **_):
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) / 16 for text in completions]


def one_step(**options):
    """The share of clipped ratios and the gradient's norm of a first step, at ratio 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    args = GRPOConfig(
        output_dir=sys.argv[1], loss_type="cispo", max_steps=1, logging_steps=1, learning_rate=0.0, seed=0, use_cpu=True,
        per_device_train_batch_size=8, num_generations=8, max_completion_length=16, report_to="none", bf16=False,
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, **options,
    )
    data = Dataset.from_dict({"prompt": ["w5 w6 w7"] * 8})
    trainer = GRPOTrainer(model, even_words, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return logged["cispo_clip_ratio"], logged["grad_norm"]


found = {"default": one_step(), "0.28": one_step(epsilon_high=0.28), "5.0": one_step(epsilon_high=5.0)}
print("epsilon_high    ratios clipped        gradient norm, as a share of that with 5.0")
for name, (clipped, norm) in found.items():
    print(f"{name:15} {clipped:<21.4f} {norm / found['5.0'][1]:.4f}")
shares = [norm / found["5.0"][1] for _, norm in found.values()]
same = found["default"][0] > 0.2 and found["5.0"][0] == 0 and abs(shares[0] - 0.2) < 0.01 and abs(shares[1] - 0.28) < 0.01
sys.exit(0 if same else 1)
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "trl==1.16.0" "transformers==5.19.0"
changed=0
HF_HUB_OFFLINE=1 "$folder/env/bin/python" -W ignore "$folder/see.py" "$folder/run" 2>"$folder/errors" | grep -v "^{" || changed=1
[ "$changed" = 0 ] || { tail -3 "$folder/errors"; echo "the behaviour has changed"; }
exit "$changed"
