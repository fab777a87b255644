"""Tokens per second of the transformers engine: ``python -m benchmarks.sampling_speed``.

Prompts are ragged, completions end at the end token or at the limit, and only the tokens of finished completions
count. Wall time depends on what else runs on the machine, CPU time of this process hardly: both are printed.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import torch

from app.engines.engine import GenerationRequest, SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.policy.models import NewTokenizerSettings, PolicySettings, end_token_ids, load_policy, load_tokenizer
from benchmarks.figures import Figure, add_json_option, write

SIZES: dict[str, dict[str, Any]] = {
    "0.34M": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "109M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"vocab_size": 32000},
}


def policy_settings(size: str, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> PolicySettings:
    """A new Qwen2 of one of ``SIZES`` with tied embeddings."""
    shape = SIZES[size]
    heads = {"num_key_value_heads": shape["num_attention_heads"], "tie_word_embeddings": True}
    return PolicySettings(
        config={"model_type": "qwen2", **shape, **heads}, tokenizer=NewTokenizerSettings(), dtype=dtype
    )


def measure(work: Callable[[], int], repeats: int) -> dict[str, float]:
    """Median tokens per second of wall and of CPU time; ``work`` returns the tokens it did. One run warms up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        tokens = work()
        wall.append(tokens / (time.perf_counter() - started))
        cpu.append(tokens / (time.process_time() - started_cpu))
    return {"tokens/s (wall)": statistics.median(wall), "tokens/s (cpu)": statistics.median(cpu)}


def describe_machine() -> str:
    """Processor, threads and versions that a figure belongs to."""
    import transformers

    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        processor = platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{processor}, {torch.get_num_threads()} thread(s), {versions}"


def ragged_prompts(count: int, tokens: int) -> list[list[int]]:
    """Prompts of ``tokens`` ± 20 % ids each, always the same."""
    generator = torch.Generator().manual_seed(0)
    spread = max(1, tokens // 5)
    lengths = torch.randint(tokens - spread, tokens + spread + 1, (count,), generator=generator).tolist()
    return [torch.randint(5, 72, (length,), generator=generator).tolist() for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.34M")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--group", type=int, default=8, help="completions a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop", action="append", default=[], help="a stop string")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = policy_settings(options.size, options.dtype)
    tokenizer, policy = load_tokenizer(settings), load_policy(settings).to(options.device)
    engine = TransformersEngine(max_batch_rows=options.rows)
    owner = {"policy": policy, "tokenizer": tokenizer, "device": policy.device, "compute_dtype": policy.dtype}
    engine.start(SimpleNamespace(**owner))
    sampling = SamplingSettings(max_new_tokens=options.new_tokens, stop_strings=tuple(options.stop))
    ends = end_token_ids(tokenizer, policy)
    requests = [
        GenerationRequest(prompt, options.group, seed, sampling, ends)
        for seed, prompt in enumerate(ragged_prompts(options.rows // options.group, options.prompt_tokens))
    ]

    def work() -> int:
        return sum(len(row.token_ids) for group in engine.generate(requests) for row in group)

    figures = measure(work, options.repeats)
    mean = work() / options.rows
    print(f"{options.size}, {options.rows} rows, {options.dtype}, mean length {mean:.1f}: {describe_machine()}")
    print(", ".join(f"{name} {value:,.0f}" for name, value in figures.items()))
    write(options, "sampling_speed", {name: Figure(value, "tokens/s", "higher") for name, value in figures.items()})


if __name__ == "__main__":
    main()
