"""Log-probs of packed rows: nothing is padded, and a prompt that rows share is computed once.

The same numbers as :func:`app.policy.logprobs.token_log_probs` gives, to rounding, and the same gradients: a prompt's
keys and values are one tensor, whose gradient is the sum over the rows that attend to it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from app.policy.logprobs import TokenStatistics, at_places, statistics_at, token_log_probs
from app.policy.packed_rows import PackedRows, packed_tokens
from app.policy.packing import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKS_ROWS = "packs_rows"
"""Attribute of a model that was found to compute packed rows as it computes each row alone."""
WORTH = 0.9
"""A batch is packed where that leaves at most this share of its padded area: below, moving tokens about costs more."""


@dataclass(frozen=True)
class Work:
    """What a forward pass over a batch computes, in tokens that go through every layer.

    Attributes:
        computed: positions, padding included.
        padding: those of them that are no token of a row.
        shared: tokens that it would have computed again if every row had computed its own prompt.
    """

    computed: int
    padding: int
    shared: int


def work_of(model: "PreTrainedModel", batch: TokenBatch) -> Work:
    """What :func:`row_statistics` computes of ``batch``."""
    # A row's last token predicts nothing: packed rows leave it out, padded ones where it lies in the last column.
    if packs(model, batch):
        computed = packed_tokens(batch)
        each = int((batch.prompt_lengths + (batch.completion_lengths - 1).clamp(min=0)).sum())
        return Work(computed, 0, each - computed)
    last = batch.completion_ids.shape[1] - 1
    real = int((batch.prompt_lengths + batch.completion_lengths.clamp(max=last)).sum())
    return Work(padded_tokens(batch), padded_tokens(batch) - real, 0)


def packs_rows(model: "PreTrainedModel") -> bool:
    """Whether ``model`` takes packed rows."""
    return getattr(model, PACKS_ROWS, False)


def packs(model: "PreTrainedModel", batch: TokenBatch) -> bool:
    """Whether ``batch`` is packed on its way through ``model``."""
    if not packs_rows(model) or int(batch.completion_lengths.max()) == 0:
        return False
    return packed_tokens(batch) <= WORTH * padded_tokens(batch)


def padded_tokens(batch: TokenBatch) -> int:
    """Positions that are computed of ``batch`` without packing."""
    return len(batch) * (batch.input_ids.shape[1] - 1)


def row_statistics(
    model: "PreTrainedModel",
    batch: TokenBatch,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> TokenStatistics:
    """As :func:`app.policy.logprobs.token_log_probs`, packed where that is possible and saves something."""
    evaluate = packed_log_probs if packs(model, batch) else token_log_probs
    return evaluate(model, batch, temperature, with_entropy, entropy_gradient)


def packed_log_probs(
    model: "PreTrainedModel",
    batch: TokenBatch,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> TokenStatistics:
    """As :func:`app.policy.logprobs.token_log_probs`, of packed rows, for a model whose attention takes them."""
    from app.policy.packed_attention import packed

    rows = PackedRows(batch)
    with packed(rows):
        found = statistics_at(
            model,
            lambda values: rows.predicting(values[0]),
            batch.completion_ids.flatten()[rows.places],
            temperature,
            with_entropy,
            entropy_gradient,
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            # Without a mask, transformers would look for packed rows by itself.
            attention_mask=torch.ones_like(rows.input_ids),
            use_cache=False,
        )
    return at_places(found, rows.places, batch.completion_mask)
