"""Attention of packed rows, through the interfaces that transformers has for attention and masks of one's own.

A model whose ``attn_implementation`` is ``ATTENTION`` computes as under "sdpa". Inside :func:`packed`, its forward pass
takes a packed row (:mod:`app.policy.packed_rows`) instead: where it asks for a mask it gets a :class:`RowMasks`, and a
layer that is given one as its mask attends within rows. What a family lets a token see (all before it, a window, a
chunk) comes from the family's own mask function, asked with positions in rows. The masks are arguments of the layers,
so that gradient checkpointing, which runs them again in the backward pass, has the same ones.

Imports transformers at module level: import this module late.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from app.policy.packed_rows import ATTENTION, Block, PackedRows, Repeated

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query's position, key's position) → whether the one sees the other; all broadcast."""

_rows: contextvars.ContextVar[PackedRows | None] = contextvars.ContextVar("packed_rows", default=None)


@contextlib.contextmanager
def packed(rows: PackedRows) -> Iterator[None]:
    """Inside, a forward pass of this thread takes ``rows``."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


class RowMasks:
    """What tokens of packed rows see under one of a family's rules: stands in the place of a mask. No dataclass, for
    FSDP takes those apart among a layer's arguments.

    Args:
        rows: the packed rows.
        rule: of the family.

    Attributes:
        prompts: [1, 1, P, P] bool, or None for all that comes before.
        blocks: for each block of ``rows`` [R or 1, 1, T, P + T] bool: the prompt's keys, then the completion's.
    """

    def __init__(self, rows: PackedRows, rule: Rule) -> None:
        self.rows = rows
        self._rule, self._device = rule, rows.input_ids.device
        places = torch.arange(rows.prompt_shape[1], device=self._device)[None]
        self.prompts = None if rule is causal_mask_function else self._seen(places, places)
        self.blocks = [self._of_block(block) for block in rows.blocks]

    def _of_block(self, block: Block) -> Tensor:
        lengths = block.prompt_lengths.unique() if (one := _all_equal(block)) else block.prompt_lengths
        lengths = lengths.to(self._device)[:, None]
        places = torch.arange(block.prompt_width, device=self._device)[None]
        own = lengths + torch.arange(block.width, device=self._device)
        seen = self._seen(own, torch.cat([places.expand(len(lengths), -1), own], dim=1))
        if not one:
            seen[..., : block.prompt_width] &= (places < lengths)[:, None, None]
        return seen

    def _seen(self, queries: Tensor, keys: Tensor) -> Tensor:
        nothing = torch.zeros((), dtype=torch.long, device=self._device)
        shape = (len(queries), queries.shape[1], keys.shape[1])
        return self._rule(nothing, nothing, queries[:, :, None], keys[:, None]).expand(shape)[:, None].clone()


def _all_equal(block: Block) -> bool:
    return bool(block.prompt_lengths.min() == block.prompt_lengths.max())


def _mask(*args: Any, mask_function: Rule = causal_mask_function, use_vmap: bool = False, **settings: Any) -> Any:
    """transformers' interface for masks."""
    rows = _rows.get()
    if rows is None:
        return sdpa_mask(*args, mask_function=mask_function, use_vmap=use_vmap, **settings)
    if use_vmap:
        raise ValueError("the family adds rules of its own to what a token sees")
    return RowMasks(rows, mask_function)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' interface for attention: heads come second in what it is given, third in what it returns."""
    if isinstance(attention_mask, RowMasks):
        if settings.get("position_bias") is not None:
            raise ValueError("attention has a bias by position")
        return _attend(module, query, key, value, attention_mask, settings), None
    if _rows.get() is not None:
        raise ValueError("the family makes masks of its own")
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, masks: RowMasks, settings: dict[str, Any]
) -> Tensor:
    """[1, heads, N, size] each → [1, N, heads, size]."""
    rows = masks.rows
    prompts, width = rows.prompt_shape
    spread = [_Spread.apply(x[0].transpose(0, 1), rows.slots, rows.slot_of_token) for x in (query, key, value)]
    parts = [x[: prompts * width].unflatten(0, (prompts, width)).transpose(1, 2) for x in spread]
    _, prompt_keys, prompt_values = parts
    causal = settings | {"is_causal": masks.prompts is None}
    found = [sdpa_attention_forward(module, *parts, masks.prompts, **causal)[0].flatten(0, 1)]
    start = prompts * width
    for block, mask in zip(rows.blocks, masks.blocks, strict=True):
        shape = (len(block.rows), block.width)
        end = start + shape[0] * shape[1]
        own = [x[start:end].unflatten(0, shape).transpose(1, 2) for x in spread]
        before = [Repeated.apply(x[:, :, : block.prompt_width], block.prompts) for x in (prompt_keys, prompt_values)]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, own[1:], strict=True))
        found.append(sdpa_attention_forward(module, own[0], keys, values, mask, **settings)[0].flatten(0, 1))
        start = end
    return _Collected.apply(torch.cat(found), rows.slots, rows.slot_of_token)[None]


class _Spread(torch.autograd.Function):
    """Tokens [N, …] → slots [M, …]. What a slot of padding passes back is nothing, for no real token sees it."""

    @staticmethod
    def forward(ctx: FunctionCtx, tokens: Tensor, slots: Tensor, slot_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of_token)
        return tokens.index_select(0, slots)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slot_of_token,) = ctx.saved_tensors
        return gradients[0].index_select(0, slot_of_token), None, None


class _Collected(torch.autograd.Function):
    """Slots [M, …] → tokens [N, …]; padding gets no gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, slots: Tensor, slot_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(slots, slot_of_token)
        return values.index_select(0, slot_of_token)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        slots, slot_of_token = ctx.saved_tensors
        result = gradients[0].new_zeros((len(slots), *gradients[0].shape[1:]))
        return result.index_copy_(0, slot_of_token, gradients[0]), None, None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
