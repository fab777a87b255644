"""Rows one behind the other without padding, and a prompt that several of them have only once.

A forward pass then computes N tokens as one row, [1, N]: every different prompt of a batch, then of every row its
completion. Only attention sees rows (:mod:`app.policy.packed_attention`): for it, tokens are spread over slots, where
prompts, and completions of alike length, lie in padded blocks of their own.

Shapes: B rows, U different prompts, N packed tokens, M slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from app.policy.packing import PerRow, TokenBatch
from app.policy.sharding.wrapping import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "sdpa_packed_rows"
"""The attention of a model that takes packed rows: :mod:`app.policy.packed_attention`."""
ALIKE = 0.5
"""Completions lie in one block of slots down to this share of its longest one."""

Indices = Int[Tensor, " n"]


@dataclass(frozen=True)
class Block:
    """R completions of alike length for attention, padded on the right to T tokens.

    Attributes:
        rows: [R] of the batch.
        prompts: [R] the number, from 0 to U − 1, of each one's prompt.
        prompt_lengths: [R] tokens of it; on the CPU.
        width: T.
    """

    rows: Indices
    prompts: Indices
    prompt_lengths: Indices
    width: int

    @property
    def prompt_width(self) -> int:
        """The longest prompt of its rows."""
        return int(self.prompt_lengths.max())


class Repeated(torch.autograd.Function):
    """Prompts [U, …] → one for each of R completions, [R, …]. The sum on the way back is a product of matrices: faster
    than what torch does for an index, and on GPUs always in the same order."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, prompts: Tensor) -> Tensor:
        ctx.save_for_backward(prompts)
        ctx.count = len(values)
        return values.index_select(0, prompts)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (prompts,) = ctx.saved_tensors
        owned = torch.arange(ctx.count, device=prompts.device)[:, None] == prompts
        (gradient,) = gradients
        return (owned.to(gradient.dtype) @ gradient.flatten(1)).view(-1, *gradient.shape[1:]), None


class PackedRows:
    """Where the tokens of a batch lie in its packed row. All is counted on the CPU: no device has to be waited for.

    A row's last token predicts nothing that is wanted: it is left out.

    Args:
        batch: B rows; those without a completion add their prompt alone.

    Attributes:
        input_ids, position_ids: [1, N]; positions count from the start of each row's prompt.
        places: where in [B · T] lie the completion tokens that :meth:`predicting` is about, in its order.
        prompt_tokens: how many of the N belong to prompts; they come first.
        prompt_of_row: [B] each row's prompt, from 0 to U − 1.
        last_of_prompt: [U] where among the N tokens each prompt ends: what is computed there predicts first tokens.
        slots: [M] the token that lies in each slot; padding repeats a token of its own row.
        slot_of_token: [N] its inverse.
        prompt_shape: (U, the longest prompt): the first slots are those of prompts.
        blocks: the other slots.
    """

    def __init__(self, batch: TokenBatch) -> None:
        device = batch.input_ids.device
        prompt_of_row = batch.prompt_numbers.unique(return_inverse=True)[1]
        owner = torch.empty(int(prompt_of_row.max()) + 1, dtype=torch.long)
        owner[prompt_of_row] = torch.arange(len(batch))  # any of the rows that have it
        lengths, tails = batch.prompt_lengths[owner], (batch.completion_lengths - 1).clamp(min=0)
        (prompt, in_prompt), (row, in_row) = _ragged(lengths), _ragged(tails)
        width, edge = batch.input_ids.shape[1], batch.prompt_length
        sources = torch.cat([owner[prompt] * width + edge - lengths[prompt] + in_prompt, row * width + edge + in_row])
        positions = torch.cat([in_prompt, batch.prompt_lengths[row] + in_row])
        self.input_ids = batch.input_ids.flatten()[sources.to(device)][None]
        self.position_ids = positions.to(device)[None]
        columns = batch.completion_ids.shape[1]
        self.places = torch.cat([torch.arange(len(batch)) * columns, row * columns + in_row + 1]).to(device)
        self.prompt_tokens = len(prompt)
        self.prompt_of_row = prompt_of_row.to(device)
        self.last_of_prompt = (lengths.cumsum(0) - 1).to(device)
        self.prompt_shape = (len(lengths), int(lengths.max()))
        self.blocks = tuple(_blocks(tails, prompt_of_row, batch.prompt_lengths))
        slots, slot_of_row = self._slots(lengths, tails)
        of_prompts = prompt * self.prompt_shape[1] + in_prompt
        self.slots = slots.to(device)
        self.slot_of_token = torch.cat([of_prompts, slot_of_row[row] + in_row]).to(device)
        self.blocks = tuple(_moved(block, device) for block in self.blocks)

    def predicting(self, values: Float[Tensor, "N D"]) -> Float[Tensor, "n D"]:
        """Of what is computed at each token, what predicts completion tokens: the first one of all B rows, be it
        there or not, then the later ones, one row after the other."""
        last = values.index_select(0, self.last_of_prompt)
        return torch.cat([Repeated.apply(last, self.prompt_of_row), values[self.prompt_tokens :]])

    def _slots(self, lengths: PerRow, tails: PerRow) -> tuple[Indices, PerRow]:
        """The token in each slot, and the first slot of each row's completion."""
        starts = lengths.cumsum(0) - lengths
        slots = [_filled(starts, lengths, self.prompt_shape[1])]
        starts = self.prompt_tokens + tails.cumsum(0) - tails
        slot_of_row, used = torch.zeros_like(tails), len(slots[0])
        for block in self.blocks:
            slots.append(_filled(starts[block.rows], tails[block.rows], block.width))
            slot_of_row[block.rows] = used + torch.arange(len(block.rows)) * block.width
            used += len(slots[-1])
        return torch.cat(slots), slot_of_row


def attention_of(model: "PreTrainedModel") -> str:
    """The attention of rows that are not packed, by transformers' name."""
    name = inner_model(model).config._attn_implementation
    return "sdpa" if name == ATTENTION else name


def packed_tokens(batch: TokenBatch) -> int:
    """N of ``batch``, without packing it."""
    prompts = dict(zip(batch.prompt_numbers.tolist(), batch.prompt_lengths.tolist(), strict=True))
    return sum(prompts.values()) + int((batch.completion_lengths - 1).clamp(min=0).sum())


def _blocks(tails: PerRow, prompt_of_row: PerRow, prompt_lengths: PerRow) -> Iterator[Block]:
    """Rows by falling length, cut where they have become much shorter than a block's first one; empty ones in none."""
    order = tails.argsort(descending=True, stable=True)
    order = order[tails[order] > 0]
    falling, start = tails[order].tolist(), 0
    for end in range(1, len(falling) + 1):
        if end == len(falling) or falling[end] < ALIKE * falling[start]:
            rows = order[start:end]
            yield Block(rows, prompt_of_row[rows], prompt_lengths[rows], falling[start])
            start = end


def _moved(block: Block, device: torch.device) -> Block:
    return Block(block.rows, block.prompts.to(device), block.prompt_lengths, block.width)


def _ragged(lengths: PerRow) -> tuple[Indices, Indices]:
    """Of every element of rows of these lengths its row and its place in it."""
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    return row, torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]


def _filled(starts: PerRow, lengths: PerRow, width: int) -> Indices:
    """[rows · width] elements of rows that start at ``starts``; the last one of each fills it up."""
    columns = torch.minimum(torch.arange(width), lengths[:, None] - 1)
    return (starts[:, None] + columns).flatten()
