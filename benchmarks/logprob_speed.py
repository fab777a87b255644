"""Tokens per second of the trainer's log-probs, forward and backward: ``python -m benchmarks.logprob_speed``.

Rows are those of a rollout: ragged prompts, completions up to the limit. Only completion tokens count.
"""

import argparse

import torch

from app.policy.logprobs import token_log_probs
from app.policy.models import load_policy
from app.policy.packing import build, split_by_rows, split_by_tokens
from benchmarks.figures import Figure, add_json_option, write
from benchmarks.sampling_speed import SIZES, describe_machine, measure, policy_settings, ragged_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.34M")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64, help="rows a forward and backward pass")
    parser.add_argument("--token-budget", type=int, default=0, help="instead: padded tokens a pass")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = load_policy(policy_settings(options.size, options.dtype)).to(options.device).train()
    completions = ragged_prompts(options.rows, options.new_tokens * 5 // 6)
    batch = build(ragged_prompts(options.rows, options.prompt_tokens), completions, pad_id=0)
    budget = options.token_budget
    parts = split_by_tokens(batch, budget) if budget else split_by_rows(batch, options.micro_batch)
    micro_batches = [batch.select(rows).to(options.device) for rows in parts]

    def forward() -> int:
        with torch.no_grad():
            for part in micro_batches:
                token_log_probs(policy, part)
        return sum(map(len, completions))

    def forward_and_backward() -> int:
        for part in micro_batches:
            token_log_probs(policy, part).log_probs.sum().backward()
        policy.zero_grad()
        return sum(map(len, completions))

    print(f"{options.size}, {options.rows} rows in {len(parts)} parts, {options.dtype}: {describe_machine()}")
    written: dict[str, Figure] = {}
    for name, work in (("forward", forward), ("forward and backward", forward_and_backward)):
        figures = measure(work, options.repeats)
        print(f"{name}: " + ", ".join(f"{unit} {value:,.0f}" for unit, value in figures.items()))
        written |= {f"{name}, {unit}": Figure(value, "tokens/s", "higher") for unit, value in figures.items()}
    write(options, "logprob_speed", written)


if __name__ == "__main__":
    main()
