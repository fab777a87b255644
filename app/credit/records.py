"""What the credit page shows of a group of completions, as a dictionary that JSON holds.

A record is one line of the run's journal and one group on its page. Numbers keep three significant digits, for a
completion of 4,000 tokens has tens of thousands of them. Of a completion longer than :data:`TOKENS` the first and the
last tokens are kept; credit is computed before anything is left out.

Shapes: G completions of one prompt, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from app.algorithm.credit import every_variant, ratio_and_clip, token_credit, variant_name
from app.algorithm.objective import ObjectiveSettings

TOKENS = 4096
"""So many tokens of a completion are kept, half of them from its beginning, half from its end."""
COMPLETIONS = 8
"""So many completions of a group are kept: those with the highest and those with the lowest advantages."""
DIGITS = 3

Numbers = list[float | None] | None
"""Null in the place of a number: it is not known. Null in the place of the list: all are 0."""


@dataclass(frozen=True)
class Completion:
    """What is shown of a completion beside its tokens' numbers.

    Attributes:
        texts: of its tokens, one by one.
        reward: what the update learned from; NaN where there is none.
        finish: why it ended: "stop" or "length".
        columns: further scores by name.
    """

    texts: Sequence[str]
    reward: float
    finish: str
    columns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, and the numbers of their tokens.

    Attributes:
        iteration: counted from 1.
        problem, answer: of the data's row.
        completions: G of them.
        mask: [G, T] the tokens that the loss counts.
        log_ratio: [G, T] log π_θ − log π_old; NaN on rows that took no part in the update.
        old_log_probs: [G, T] log π_old, in nats; not read on rows that took no part.
        entropy: [G, T] of π_old, in nats; as ``old_log_probs``.
        advantages: [G].
        importance_weights: [G, T], as the objective takes them, or None.
        counted: [G, T], as the objective takes it, or None.
    """

    iteration: int
    problem: str
    answer: str
    completions: Sequence[Completion]
    mask: Bool[Tensor, "G T"]
    log_ratio: Float[Tensor, "G T"]
    old_log_probs: Float[Tensor, "G T"]
    entropy: Float[Tensor, "G T"]
    advantages: Float[Tensor, " G"]
    importance_weights: Float[Tensor, "G T"] | None = None
    counted: Bool[Tensor, "G T"] | None = None


def record_of(group: Group, settings: ObjectiveSettings) -> dict[str, Any]:
    """The record of ``group`` as an update with ``settings`` saw it, with the credit of every variant beside it."""
    rows = chosen_rows(group.advantages.tolist())
    variants = {name: _variant(group, each) for name, each in every_variant(settings).items()}
    return {
        "iteration": group.iteration,
        "problem": group.problem,
        "answer": group.answer,
        "size": len(group.completions),
        "variant": variant_name(settings),
        "q": round(settings.q, 6),
        "clip": [settings.clip_low, settings.clip_high if math.isfinite(settings.clip_high) else None],
        "surrogate": settings.surrogate,
        "completions": [_completion(group, row, variants) for row in rows],
    }


def chosen_rows(advantages: Sequence[float]) -> list[int]:
    """Of a large group those with the highest and lowest advantages, best first."""
    order = sorted(range(len(advantages)), key=lambda row: -advantages[row])
    half = COMPLETIONS // 2
    return order if len(order) <= COMPLETIONS else order[:half] + order[-half:]


def kept_tokens(length: int) -> tuple[list[int], list[int] | None]:
    """Positions that are kept of so many, and [first, how many] of what is left out between them."""
    if length <= TOKENS:
        return list(range(length)), None
    half = TOKENS // 2
    return [*range(half), *range(length - half, length)], [half, length - TOKENS]


def rounded(values: Float[Tensor, " n"]) -> Numbers:
    """With :data:`DIGITS` significant digits; what is not finite is null, and so is a list of zeros.

    Below 1e-15 a number is 0: powers of ten up to 1e22 alone are exact.
    """
    exact = values.detach().double().cpu()
    exact = exact.where(exact.abs() >= 1e-15, 0.0).where(~exact.isnan(), exact)
    finite = exact.isfinite()
    if not exact.where(finite, 1.0).any():
        return None
    magnitude = exact.abs().where(finite & (exact != 0), 1.0).log10().floor()
    step = 10 ** (magnitude - DIGITS + 1).abs()  # a whole power of ten is exact, its inverse is not
    small = magnitude < DIGITS - 1
    near = torch.where(small, (exact * step).round() / step, (exact / step).round() * step)
    return [value if known else None for value, known in zip(near.tolist(), finite.tolist(), strict=True)]


def _variant(group: Group, settings: ObjectiveSettings) -> dict[str, Any]:
    """Credit, log ρ (where it is not the token's own) and clip of all G completions."""
    tensors = (group.log_ratio, group.advantages, group.mask)
    credit = token_credit(*tensors, settings, group.importance_weights, group.counted)
    seen, clipped = ratio_and_clip(*tensors, settings)
    own = settings.application in ("trace", "gspo")
    return {"credit": credit.cpu(), "z": seen.cpu() if own else None, "clipped": clipped.cpu()}


def _completion(group: Group, row: int, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    completion = group.completions[row]
    kept, left_out = kept_tokens(len(completion.texts))
    columns = torch.tensor(kept, dtype=torch.long)
    log_ratio = group.log_ratio[row].cpu()[columns]
    took_part = bool(kept) and not bool(log_ratio.isnan().any())
    numbers = {"old_log_prob": group.old_log_probs, "entropy": group.entropy}
    return {
        "index": row,
        "reward": _number(completion.reward),
        "advantage": _number(group.advantages[row].item()),
        "finish": completion.finish,
        "scores": {name: _number(value) for name, value in completion.columns.items()},
        "length": len(completion.texts),
        "left_out": left_out,
        "took_part": took_part,
        "texts": [completion.texts[index] for index in kept],
        "log_ratio": rounded(log_ratio) if took_part else None,
        **{name: rounded(each[row].cpu()[columns]) if took_part else None for name, each in numbers.items()},
        "variants": {name: _of_row(each, row, columns) for name, each in variants.items()} if took_part else {},
    }


def _of_row(variant: Mapping[str, Any], row: int, columns: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"credit": rounded(variant["credit"][row][columns])}
    if variant["z"] is not None:
        found["z"] = rounded(variant["z"][row][columns])
    clipped = variant["clipped"][row][columns]
    if clipped.any():
        found["clipped"] = clipped.nonzero().flatten().tolist()
    return found


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
