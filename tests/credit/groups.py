"""Groups of completions with texts and numbers that are made up."""

import torch

from app.credit.records import Completion, Group

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--",
    "&amp; <b>bold</b>",
    "\u202egnp.exe\u202c",
    "\ud800",
    "\x00\x1b[31m",
    "{{js}} {{data}}",
    "line\nbreak\u2028",
    "'\"`${1}\\",
]
"""Tokens that would act on a page that did not take care."""


def made_up(lengths: list[int], iteration: int = 1, seed: int = 0, problem: str = "How many?", idle: int = 0) -> Group:
    """Completions of these lengths, the first with the best reward; the last ``idle`` took no part in the update."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    log_ratio = 0.1 * torch.randn(mask.shape, generator=generator).where(mask, 0.0)
    advantages = torch.linspace(1, -1, len(lengths))
    if idle:
        log_ratio[-idle:], advantages[-idle:] = float("nan"), 0.0
    completions = [
        Completion([f"t{row}.{k} " for k in range(length)], 1 - row / len(lengths), "stop", {"format": 0.5})
        for row, length in enumerate(lengths)
    ]
    old = -torch.rand(mask.shape, generator=generator)
    entropy = torch.rand(mask.shape, generator=generator)
    return Group(iteration, problem, "42", completions, mask, log_ratio, old, entropy, advantages)
