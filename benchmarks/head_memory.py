"""Bytes that log-probs take, from hidden states and from logits: ``python -m benchmarks.head_memory``.

Counted is what tensors hold at most while the log-probs of some tokens are made of their hidden states, forward and
backward, beside the hidden states, the head's weight and the gradients of both. Nothing is timed.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from app.policy.head_log_probs import head_log_probs
from app.policy.logprobs import selective_log_softmax
from benchmarks.allocations import Allocated
from benchmarks.figures import Figure, add_json_option, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=64, help="of the hidden states")
    parser.add_argument("--dtype", default="float32")
    add_json_option(parser)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(options.tokens, options.width).to(dtype).requires_grad_()
    weight = torch.randn(options.vocabulary, options.width).to(dtype).requires_grad_()
    written: dict[str, Figure] = {}
    for way, held in held_bytes(hidden, weight).items():
        print(
            f"{options.tokens:,} tokens, vocabulary {options.vocabulary:,}, {options.dtype}, {way}: {held / 1e9:.3f} GB"
        )
        written[way] = Figure(held / 1e6, "MB", "lower")
    write(options, "head_memory", written)


def held_bytes(hidden: Tensor, weight: Tensor) -> dict[str, int]:
    """For each way the peak of both passes, of hidden states [N, H] and a head's weight [V, H]."""
    ids = torch.arange(len(hidden)) % len(weight)
    ways: dict[str, Callable[[], Tensor]] = {
        "from hidden states": lambda: head_log_probs(hidden, weight, None, ids).log_probs,
        "from logits": lambda: selective_log_softmax((hidden @ weight.T)[None], ids[None]),
    }
    found = {}
    for way, log_probs in ways.items():
        with Allocated([hidden, weight, ids]) as made:
            torch.autograd.grad(log_probs().sum(), (hidden, weight))
        found[way] = made.peak - hidden.nbytes - weight.nbytes
    return found


if __name__ == "__main__":
    main()
