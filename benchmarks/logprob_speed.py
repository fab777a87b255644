"""Tokens per second of the trainer's log-probs, forward and backward: ``python -m benchmarks.logprob_speed``.

Rows are those of a rollout: ragged prompts, completions up to the limit. Only completion tokens count. Log-probs from
hidden states, as the trainer takes them, and from whole logits, as of a family that needs those, are measured in turn.
What they take in memory is counted by ``benchmarks.head_memory``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from app.policy.head import HEAD
from app.policy.head_log_probs import OutputHead
from app.policy.logprobs import token_log_probs
from app.policy.models import load_policy
from app.policy.packing import build, split_by_rows, split_by_tokens
from benchmarks.figures import Figure, add_json_option, write
from benchmarks.sampling_speed import SIZES, describe_machine, policy_settings, ragged_prompts

WAYS: dict[str, OutputHead | None] = {"hidden states": OutputHead(), "logits": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.34M")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64, help="rows a forward and backward pass")
    parser.add_argument("--token-budget", type=int, default=0, help="instead: padded tokens a pass")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--vocabulary", type=int, help="of the policy, in the place of its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write(options, "logprob_speed", speed(options))


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


if __name__ == "__main__":
    main()
