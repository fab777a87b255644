"""Tokens per second of the trainer's log-probs, forward and backward: ``python -m benchmarks.logprob_speed``.

Rows are those of a rollout: ragged prompts, completions up to the limit. Only completion tokens count. Log-probs from
hidden states, as the trainer takes them, and from whole logits, as of a family that needs those, are measured in turn.

``--memory`` counts bytes instead: what tensors hold at most while the log-probs of ``--tokens`` tokens are made of
their hidden states, forward and backward, beside the hidden states, the head's weight and the gradients of both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from app.policy.head import HEAD
from app.policy.head_log_probs import OutputHead, head_log_probs
from app.policy.logprobs import selective_log_softmax, token_log_probs
from app.policy.models import load_policy
from app.policy.packing import build, split_by_rows, split_by_tokens
from benchmarks.allocations import Allocated
from benchmarks.figures import Figure, add_json_option, write
from benchmarks.sampling_speed import SIZES, describe_machine, policy_settings, ragged_prompts

WAYS: dict[str, OutputHead | None] = {"hidden states": OutputHead(), "logits": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.34M")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64, help="rows a forward and backward pass")
    parser.add_argument("--token-budget", type=int, default=0, help="instead: padded tokens a pass")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--vocabulary", type=int, default=0, help="of the policy (its own) or of --memory (151,936)")
    parser.add_argument("--memory", action="store_true", help="counts bytes, of the head alone")
    parser.add_argument("--tokens", type=int, default=4096, help="of --memory")
    parser.add_argument("--width", type=int, default=64, help="of --memory's hidden states")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write(options, "logprob_speed", (memory if options.memory else speed)(options))


def speed(options: argparse.Namespace) -> dict[str, Figure]:
    """Medians of both ways and both passes."""
    settings = policy_settings(options.size, options.dtype)
    if options.vocabulary:
        settings = replace(settings, config={**(settings.config or {}), "vocab_size": options.vocabulary})
    policy = load_policy(settings).to(options.device).train()
    completions = ragged_prompts(options.rows, options.new_tokens * 5 // 6)
    batch = build(ragged_prompts(options.rows, options.prompt_tokens), completions, pad_id=0)
    budget = options.token_budget
    parts = split_by_tokens(batch, budget) if budget else split_by_rows(batch, options.micro_batch)
    micro_batches = [batch.select(rows).to(options.device) for rows in parts]

    def forward(head: OutputHead | None) -> None:
        setattr(policy, HEAD, head)
        with torch.no_grad():
            for part in micro_batches:
                token_log_probs(policy, part)

    def forward_and_backward(head: OutputHead | None) -> None:
        setattr(policy, HEAD, head)
        for part in micro_batches:
            token_log_probs(policy, part).log_probs.sum().backward()
        policy.zero_grad()

    print(f"{options.size}, {options.rows} rows in {len(parts)} parts, {options.dtype}: {describe_machine()}")
    written: dict[str, Figure] = {}
    for name, work in (("forward", forward), ("forward and backward", forward_and_backward)):
        found = in_turn(work, sum(map(len, completions)), options.repeats)
        for way, figures in found.items():
            print(f"{name}, {way}: " + ", ".join(f"{unit} {value:,.0f}" for unit, value in figures.items()))
            suffix = "" if way == "hidden states" else f" from {way}"
            written |= {f"{name}{suffix}, {unit}": Figure(rate, "tokens/s", "higher") for unit, rate in figures.items()}
    return written


def in_turn(work: Callable[[OutputHead | None], None], tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median tokens per second of wall and of CPU time for each way. One run of each warms up."""
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, head in WAYS.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            work(head)
            if repeat:
                wall[way].append(tokens / (time.perf_counter() - started))
                cpu[way].append(tokens / (time.process_time() - started_cpu))
    return {
        way: {"tokens/s (wall)": statistics.median(wall[way]), "tokens/s (cpu)": statistics.median(cpu[way])}
        for way in WAYS
    }


def memory(options: argparse.Namespace) -> dict[str, Figure]:
    """Bytes of both ways."""
    vocabulary, dtype = options.vocabulary or 151_936, getattr(torch, options.dtype)
    hidden = torch.randn(options.tokens, options.width).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, options.width).to(dtype).requires_grad_()
    ids = torch.arange(options.tokens) % vocabulary
    ways: dict[str, Callable[[], Tensor]] = {
        "hidden states": lambda: head_log_probs(hidden, weight, None, ids).log_probs,
        "logits": lambda: selective_log_softmax((hidden @ weight.T)[None], ids[None]),
    }
    written: dict[str, Figure] = {}
    for way, log_probs in ways.items():
        with Allocated([hidden, weight, ids]) as made:
            torch.autograd.grad(log_probs().sum(), (hidden, weight))
        held = made.peak - hidden.nbytes - weight.nbytes
        print(f"{options.tokens:,} tokens, vocabulary {vocabulary:,}, {options.dtype}, {way}: {held / 1e9:.3f} GB")
        written[f"memory, {way}"] = Figure(held / 1e6, "MB", "lower")
    return written


if __name__ == "__main__":
    main()
