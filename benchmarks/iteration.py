"""What an iteration costs on this machine: ``python -m benchmarks.iteration [OPTIONS] [-- OPTIONS OF fit]``.

Runs the real ``main.py fit`` (the recipes' base, GRPO-λ, a strategy) on a policy with random weights of a known shape,
and reports, without the first iteration: where the time goes, peak memory of the two phases, and the model FLOPs
utilisation (MFU) of the training phase. ``--json`` writes it all, with the machine and the versions.

    python -m benchmarks.iteration --json benchmarks/results/h100-1.5b.json           # one GPU, bf16, FSDP2
    python -m benchmarks.iteration --shape tiny --new-tokens 16 -- --trainer.accelerator cpu
    python -m benchmarks.iteration -- --config configs/recipes/engine/vllm.yaml
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from app.dry_run.memory import Shape
from app.policy.packing import TokenBatch
from app.policy.shared_prompts import packs, work_of
from app.rewards.reward import RewardSample
from benchmarks.figures import Figure, add_json_option, write
from benchmarks.sampling_speed import describe_machine

SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "head_dim": 32, "vocab_size": 512},
    "20m": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
    | {"num_key_value_heads": 2, "vocab_size": 8192},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 512},
    "qwen2.5-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
}
"""Qwen2 with tied embeddings."""
PEAK_FLOPS = {"H100 80GB HBM3": 989.4e12, "H200": 989.4e12, "H100 PCIe": 756e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 by a part of the device's name, from NVIDIA's data sheets."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark with ``arguments``, by default those of the process."""
    options, fit_options = _parse(list(sys.argv[1:] if arguments is None else arguments))
    folder = Path(options.folder) / options.shape
    if "LOCAL_RANK" not in os.environ:  # Lightning starts its other processes by this same command
        _prepare(folder, options)
    from app.cli.main import main as command_line

    code = command_line(["fit", *_fit_arguments(folder, options), *fit_options])
    if code == 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        _report(folder, options)
    return code


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8, help="completions a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=8, help="rows a forward and backward pass")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--strategy", default="fsdp2", help="a file of configs/strategy")
    parser.add_argument("--folder", default="runs/benchmark", help="for the policy's files and the run")
    add_json_option(parser)
    parser.add_argument("fit", nargs="*", help="further options of fit, after --")
    options = parser.parse_args(arguments)
    if options.iterations < 2:
        parser.error("--iterations: the first one warms up, so at least 2 are needed")
    return options, options.fit


def _fit_arguments(folder: Path, options: argparse.Namespace) -> list[str]:
    """The recipe's base and GRPO-λ, with what this benchmark fixes."""
    files = ["recipes/base_rl", "recipes/method/grpo_lambda_trace_both", f"strategy/{options.strategy}"]
    own = {
        "model": {"init_args": {"policy": {"path": str(folder)}, "micro_batch_size": options.micro_batch}},
        "data": {
            "init_args": {
                "train": {
                    "class_path": "JsonLinesSource",
                    "init_args": {"path": str(folder / "problems.jsonl"), "answer_format": "none"},
                },
                "prompts_per_iteration": options.prompts,
                "iterations": options.iterations,
                "prompt": {"style": "raw", "max_prompt_tokens": options.prompt_tokens},
            }
        },
        "rollouts": {
            "group_size": options.group,
            "sampling": {"max_new_tokens": options.new_tokens},
            "rewards": [{"class_path": "ImportedReward"} | {"init_args": {"path": "benchmarks.iteration:even_words"}}],
        },
        "trainer": {
            "default_root_dir": str(folder / "runs"),
            "devices": 1,
            "callbacks": [
                {"class_path": "benchmarks.iteration.Recorder", "init_args": {"path": str(folder / "figures.json")}}
            ],
        },
        **dict.fromkeys(("checkpoint", "export", "completions", "traces")),
    }
    config = folder / "fit.json"
    if "LOCAL_RANK" not in os.environ:
        config.write_text(json.dumps(own))
    paths = [*(f"configs/{file}.yaml" for file in files), str(config)]
    return [word for path in paths for word in ("--config", path)]


def _prepare(folder: Path, options: argparse.Namespace) -> None:
    """Writes a policy with random weights, a tokenizer of its vocabulary, and problems of one length."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").unlink(missing_ok=True)
    words = options.prompt_tokens
    rows = [
        {"problem": " ".join(f"w{10 + (97 * row + word) % 400}" for word in range(words)), "answer": ""}
        for row in range(options.prompts * options.iterations)
    ]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if not (folder / "model.safetensors").exists():
        _write_policy(folder, SHAPES[options.shape])


def _write_policy(folder: Path, shape: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**shape, tie_word_embeddings=True, max_position_embeddings=32768, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    names = ["<unk>", "<eos>", "<pad>", *(f"w{index}" for index in range(3, config.vocab_size))]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="1TB")


def even_words(samples: Sequence[RewardSample]) -> list[float | None]:
    """The share of words with an even number: random weights earn it, and no group is tied."""
    words = [sample.completion.split() for sample in samples]
    return [sum(word[-1] in "02468" for word in row) / max(1, len(row)) for row in words]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a decoder's passes, a multiplication and an addition counted as two.

    Attributes:
        layers: weights of all decoder layers' matrices.
        head: weights of the output head, which completion tokens alone go through.
        attention: layers · heads · head size.
    """

    layers: int
    head: int
    attention: int

    @classmethod
    def of(cls, config: Any) -> "Flops":
        """Of a Qwen2 or LLaMA configuration."""
        shape = Shape.of(config)
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        layer = shape.hidden * (2 * queries + 2 * keys + 3 * shape.ffn)
        return cls(shape.layers * layer, shape.hidden * shape.vocab, shape.layers * queries)

    def forward(self, tokens: int, completion_tokens: int) -> float:
        """One row of ``tokens``, of which the last ``completion_tokens`` are predicted; causal attention sees half."""
        return 2 * self.layers * tokens + 2 * self.head * completion_tokens + 2 * self.attention * tokens**2

    def training(self, rows: Sequence[tuple[int, int]], shared: Sequence[int] = ()) -> float:
        """Forward and backward passes (twice a forward one), all weights trained. Neither padding counts, nor what is
        recomputed, nor prompts of ``shared`` lengths that rows found computed by others."""
        return 3 * (sum(self.forward(*row) for row in rows) - sum(self.forward(prompt, 0) for prompt in shared))


class Recorder(Callback):
    """Writes times, tokens, FLOPs and peak memory of each iteration of rank 0 to a JSON file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.iterations: list[dict[str, float]] = []
        self.since = 0.0  # the end of the iteration before, when this callback had done its own work

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.device, self.since = pl_module.device, time.perf_counter()
        self.flops = Flops.of(pl_module.policy.config)
        pl_module.policy.register_forward_pre_hook(self._before_forward)

    def on_train_batch_start(self, *_: Any) -> None:
        self.peaks: dict[str, float] = {}
        self.generating = True
        self._peak("held")

    def _before_forward(self, *_: Any) -> None:
        if self.generating and torch.is_grad_enabled():  # the first pass that trains
            self.generating = False
            self._peak("generating")

    def _peak(self, phase: str) -> None:
        """Largest device memory since the last call, in GiB; what is held, at an iteration's start."""
        if self.device.type != "cuda":
            return
        allocated = torch.cuda.memory_allocated if phase == "held" else torch.cuda.max_memory_allocated
        self.peaks[f"memory/{phase}"] = allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        seconds = time.perf_counter() - self.since
        self._peak("training")
        measured = {
            name.removeprefix("speed/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("speed/time/")
        }
        whole = {"time/other": seconds - sum(measured.values()), "time/iteration": seconds}
        self.iterations.append(measured | whole | self.peaks | self._work(pl_module))
        self.since = time.perf_counter()

    def _work(self, module: Any) -> dict[str, float]:
        """Tokens of all rows, and what one pass over the rows that were trained on computed."""
        tokens, policy = module.experience.tokens, module.policy
        parts = [tokens.select(part) for step in module.experience.plan.micro_batches for part in step]
        works = [work_of(policy, part) for part in parts]
        rows = [row for part in parts for row in zip(*(x.tolist() for x in _lengths(part)), strict=True)]
        return {
            "tokens": int(tokens.lengths.sum()),
            "completion_tokens": int(tokens.completion_lengths.sum()),
            "computed_tokens": sum(work.computed for work in works),
            "padding_tokens": sum(work.padding for work in works),
            "shared_tokens": sum(work.shared for work in works),
            "training_flops": self.flops.training(rows, [n for part in parts for n in _shared(policy, part)]),
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            figures = {
                "ranks": trainer.world_size,
                "matmul_flops": _matmul_flops(self.device),
                "host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "iterations": self.iterations,
            }
            self.path.write_text(json.dumps(figures))


def _lengths(part: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row, and of its completion."""
    return part.lengths, part.completion_lengths


def _shared(policy: Any, part: TokenBatch) -> list[int]:
    """Lengths of the prompts that rows found computed by others."""
    if not packs(policy, part):
        return []
    numbers, lengths = part.prompt_numbers.tolist(), part.prompt_lengths.tolist()
    return [length for row, length in enumerate(lengths) if numbers[row] in numbers[:row]]


def _matmul_flops(device: torch.device) -> float:
    """Operations a second of a large product of bfloat16 (on CPUs float32) matrices: what this device reaches."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        (one @ other)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def _report(folder: Path, options: argparse.Namespace) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    warm = figures["iterations"][1:]
    median = {name: statistics.median(row[name] for row in warm) for name in warm[0]}
    rate = median["training_flops"] / median["time/train"]
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in describe_machine()), None)
    result = {
        "median": median,
        "generated_tokens_per_s": median["completion_tokens"] / median["time/generate"],
        "trained_tokens_per_s": median["tokens"] / median["time/train"],
        "training_tflops_per_s": rate / 1e12,
        "mfu_of_data_sheet": rate / peak if peak else None,
        "mfu_of_measured_matmul": rate / figures["matmul_flops"],
        **figures,
    }
    print(_table(result))
    compared = {name: Figure(median[name], "s", "lower") for name in ("time/generate", "time/train", "time/iteration")}
    compared |= {name: Figure(result[name], "tokens/s", "higher") for name in result if name.endswith("tokens_per_s")}
    write(options, "iteration", compared, **result)


def _table(result: dict[str, Any]) -> str:
    lines = [describe_machine()]
    for name, value in result["median"].items():
        unit = {"time": "s", "memory": "GiB"}.get(name.split("/")[0], "")
        lines.append(f"  {name:20}{value:>22,.{2 if unit else 0}f} {unit}")
    for name in ("generated_tokens_per_s", "trained_tokens_per_s", "training_tflops_per_s"):
        lines.append(f"  {name:32}{result[name]:>10,.1f}")
    shares = {name: result[name] for name in ("mfu_of_data_sheet", "mfu_of_measured_matmul")}
    lines += [f"  {name:32}{share:>10.1%}" for name, share in shares.items() if share is not None]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
