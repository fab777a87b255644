"""Tokens/s, sync time and start time of the rollout engines, on policies of about 0.34 M and 100 M parameters.

``python -m benchmarks.engines [--sizes small large] [--engines transformers colocated separate] [--threads 1]``
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from app.engines.engine import GenerationRequest, RolloutEngine, SamplingSettings
from benchmarks.figures import Figure, add_json_option, write

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "vocab_size": 72,
    },
    "large": {
        "hidden_size": 768,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
}
WORK = {"small": {"prompts": 16, "n": 8, "tokens": 40}, "large": {"prompts": 4, "n": 8, "tokens": 64}}
PROMPT_TOKENS = 20


@dataclass
class Module:
    """What an engine needs to know of the LightningModule."""

    policy: Any
    tokenizer: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compute_dtype: torch.dtype = torch.float32


def build_module(size: str) -> Module:
    """A Qwen2 policy with random weights, and a tokenizer of its vocabulary."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=512)
    words = {f"w{index}": index for index in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2", unk_token="w0")
    return Module(AutoModelForCausalLM.from_config(config).eval(), fast)


def engine_of(name: str) -> RolloutEngine:
    """By name: transformers, colocated or separate (both vLLM)."""
    from app.engines.transformers_engine import TransformersEngine
    from app.engines.vllm.engine import VLLMEngine

    if name == "transformers":
        return TransformersEngine()
    return VLLMEngine(placement="separate" if name == "separate" else "colocated", kv_cache_gib=1.0)


def requests(size: str, seed: int) -> list[GenerationRequest]:
    """Completions of one length: without end tokens every engine does the same work."""
    work = WORK[size]
    sampling = SamplingSettings(max_new_tokens=work["tokens"])
    return [
        GenerationRequest([3 + (prompt + i) % 60 for i in range(PROMPT_TOKENS)], work["n"], seed + prompt, sampling, ())
        for prompt in range(work["prompts"])
    ]


def timed(action: Callable[[], Any]) -> float:
    """Seconds that ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(size: str, name: str, repeats: int) -> dict[str, float]:
    """Start, first and median sync, first and median generation of one engine."""
    module, engine = build_module(size), engine_of(name)
    work = WORK[size]
    tokens = work["prompts"] * work["n"] * work["tokens"]
    try:
        start = timed(lambda: engine.start(module))
        syncs = [timed(lambda: engine.sync(module)) for _ in range(repeats)]
        first = timed(lambda: engine.generate(requests(size, 0)))
        rest = [timed(partial(engine.generate, requests(size, seed))) for seed in range(1, repeats + 1)]
    finally:
        engine.close()
    return {
        "parameters": sum(parameter.numel() for parameter in module.policy.parameters()) / 1e6,
        "start_s": start,
        "sync_s": statistics.median(syncs),
        "first_s": first,
        "tokens_per_s": tokens / statistics.median(rest),
    }


def main() -> None:
    """Prints a table, one line an engine and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    names = ["transformers", "colocated", "separate"]
    parser.add_argument("--engines", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    add_json_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Figure] = {}
    print(f"{'size':8}{'engine':14}{'params M':>10}{'start s':>9}{'sync s':>9}{'first s':>9}{'tokens/s':>10}")
    for size in arguments.sizes:
        for name in arguments.engines:
            row = measure(size, name, arguments.repeats)
            values = "".join(f"{row[key]:>{width}.{digits}f}" for key, width, digits in COLUMNS)
            print(f"{size:8}{name:14}{values}", flush=True)
            figures[f"{size} {name} generation"] = Figure(row["tokens_per_s"], "tokens/s", "higher")
            if name != "transformers":  # which holds the policy itself: its sync is a microsecond of nothing
                figures[f"{size} {name} sync"] = Figure(row["sync_s"], "s", "lower")
    write(arguments, "engines", figures)


COLUMNS = [("parameters", 10, 2), ("start_s", 9, 2), ("sync_s", 9, 3), ("first_s", 9, 2), ("tokens_per_s", 10, 0)]


if __name__ == "__main__":
    main()
