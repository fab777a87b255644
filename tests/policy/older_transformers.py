"""Whether transformers 4 reads exported folders as the models they are: by hand, it needs an interpreter of its own.

python3 -m venv older && older/bin/pip install torch==2.13.0 transformers==4.57.6
python -m tests.policy.older_transformers --python older/bin/python

With 4.57.6 (2026-11-29) every family below loads with nothing missing or left over, its tokenizer gives the same ids,
and its logits, which spread over several units, differ by at most 2.1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from app.policy.exporting import save_policy
from app.policy.models import load_policy, load_tokenizer
from tests.running import policy_settings

IDS = torch.arange(3, 27).view(2, 12)
TEXT = "25+3=28"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
    "qwen2": {"rope_theta": 1e6},
    "phi3": {"partial_rotary_factor": 0.5},
    "gemma3_text": {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "sliding_window": 8}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"rope_theta": 1e6},
    "qwen3_moe": {"rope_theta": 1e6},
    "deepseek_v3": {"rope_theta": 2e4},
    "falcon_h1": {},
}
READER = """
import json, sys, torch, transformers
transformers.logging.set_verbosity_error()
for folder in sys.argv[1:]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    given = torch.load(folder + "/given.pt")
    off = float((model(given["ids"], use_cache=False).logits - given["logits"]).abs().max())
    wrong = [str(name) for names in report.values() for name in names]
    print(json.dumps([transformers.__version__, off, wrong, tokenizer(given["text"])["input_ids"] == given["tokens"]]))
"""


def export(kind: str, folder: Path) -> None:
    settings = policy_settings(kind, **FAMILIES[kind])
    policy, tokenizer = load_policy(settings, 0), load_tokenizer(settings)
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.rand(tensor.shape))
        logits = policy(input_ids=IDS, use_cache=False).logits
    save_policy(policy, tokenizer, folder, settings=settings)
    given = {"ids": IDS, "logits": logits, "text": TEXT, "tokens": tokenizer(TEXT)["input_ids"]}
    torch.save(given, folder / "given.pt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with torch and transformers 4")
    older, failed = parser.parse_args().python, 0
    with tempfile.TemporaryDirectory() as scratch:
        for kind in FAMILIES:
            export(kind, Path(scratch) / kind)
        folders = [str(Path(scratch) / kind) for kind in FAMILIES]
        out = subprocess.run(
            [older, "-W", "ignore", "-c", READER, *folders], capture_output=True, text=True, check=True
        )
    for kind, line in zip(FAMILIES, out.stdout.splitlines(), strict=True):
        version, off, wrong, same = json.loads(line)
        right = off < 1e-5 and not wrong and same
        failed += not right
        print(f"{kind:12} {version}  {'ok' if right else 'WRONG'}  off by {off:.1e}  {wrong or ''}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
