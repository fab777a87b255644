"""Attention of one new token a row on a CPU, over a cache that is read without a break.

A processor reads memory ahead where it is read on and on, and short runs with gaps between them are read at half of
that speed: a cache with room for more tokens in every row has such gaps, and one without must be copied at every token.
Here the latest few tokens lie apart and the settled ones without gaps; attention adds up the two. torch's fused kernel
works through one head after another at a cost of its own for each; batched products do not.

transformers asks a table for the function that attends and for the one that makes masks. Inside
:func:`streamed_attention` that of ``sdpa`` is answered by the functions here, whose results differ by rounding.

Imports transformers at module level: import this module late.

Shapes: B rows, H heads, K of them with keys of their own (H = K·G), S settled and R latest tokens, D size of a head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.errors import ConfigurationError

LATEST = 8
"""Tokens that lie apart before they settle, which copies the cache."""
PRECISE = (torch.float32, torch.float64)
"""Products are rounded to their own dtype between the steps of attention, and not only at its end."""


class NotStreamedError(ConfigurationError):
    """The model attends in a way of its own; it keeps the cache that it has elsewhere."""


def may_stream(model: Any, dtype: torch.dtype) -> bool:
    """Whether ``model``, which computes in ``dtype``, is of the kind that this is for; only trying shows that it is."""
    config = model.config.get_text_config()
    if next(model.parameters()).device.type != "cpu" or dtype not in PRECISE or config._attn_implementation != "sdpa":
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def streamed_cache(config: Any) -> DynamicCache:
    """An empty cache for :func:`streamed_attention`."""
    cache = DynamicCache(config=config)
    cache.layers = [StreamedLayer() for _ in cache.layers]
    return cache


class StreamedLayer(DynamicLayer):
    """Keys and values of one layer. The prompts settle at once; one token a row follows at a time.

    Attributes:
        keys, values: [B, K, S, D] settled, without gaps after the first :meth:`reorder_cache`.
        latest: [2, LATEST, B·K, D] keys and values, of which ``length − S`` are filled.
        length: tokens in all.
        unread: the newest keys, until attention has read them.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_initialized = False
        self.length = 0
        self.latest_keys = self.latest_values = torch.empty(0)
        self.unread: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The newest states are given back as they came: attention finds the others by them."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values, self.length = key_states, value_states, key_states.shape[2]
            return key_states, value_states
        if self.unread is not None or key_states.shape[2] != 1:
            raise NotStreamedError("attention does not ask transformers' table, or not one token at a time")
        if self.waiting == len(self.latest_keys):
            self._settle()
        self.latest_keys[self.waiting] = key_states.flatten(0, 2)
        self.latest_values[self.waiting] = value_states.flatten(0, 2)
        self.length += 1
        self.unread = key_states
        key_states.cache_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    @property
    def waiting(self) -> int:
        """R, tokens that have not settled."""
        return self.length - self.keys.shape[2]

    def _settle(self) -> None:
        self.keys, self.values = (
            torch.cat([settled, latest.unflatten(1, settled.shape[:2]).permute(1, 2, 0, 3)], dim=2)
            for settled, latest in (
                (self.keys, self.latest_keys[: self.waiting]),
                (self.values, self.latest_values[: self.waiting]),
            )
        )

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was: repeats rows, drops rows."""
        if self.waiting:
            self._settle()
        self.keys, self.values = (x.index_select(0, beam_idx) for x in (self.keys, self.values))
        self.latest_keys, self.latest_values = (
            x.new_empty(LATEST, x.shape[0] * x.shape[1], x.shape[3]) for x in (self.keys, self.values)
        )


@contextlib.contextmanager
def streamed_attention() -> Iterator[None]:
    """Inside, models that attend by ``sdpa`` do so by :func:`attend`, with masks of :func:`padding_mask`."""
    ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = attend, padding_mask
    try:
        yield
    finally:
        # The tables keep their own functions beside those that are put over them for a while.
        del ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` [B, H, 1, D] to the whole cache of the layer that ``key`` [B, K, 1, D] was given to.

    Returns:
        [B, 1, H, D], and no weights.

    Raises:
        NotStreamedError: the model has changed the keys since, or asks for more than plain attention.
    """
    layer: StreamedLayer | None = getattr(key, "cache_layer", None)
    if layer is None or dropout or further.get("position_bias") is not None:
        raise NotStreamedError("attention is not of a query to the keys of its cache alone")
    layer.unread = None
    (rows, heads, _, size), groups = query.shape, layer.keys.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    queries = query.reshape(rows * groups, heads // groups, size) * scale  # [B·K, G, D]
    count, keys = layer.waiting, layer.keys.flatten(0, 1)
    scores = torch.cat([torch.bmm(queries, keys.transpose(1, 2)), _scores(queries, layer.latest_keys[:count])], dim=2)
    weights = _masked(scores, attention_mask, rows).softmax(-1)
    settled, latest = weights.split([keys.shape[1], count], dim=2)
    output = torch.bmm(settled, layer.values.flatten(0, 1)) + _mixed(latest, layer.latest_values[:count])
    return output.view(rows, 1, heads, value.shape[-1]), None


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """[B·K, G, D], [R, B·K, D] → [B·K, G, R]. Batched products of so few numbers are slow where G is 1."""
    if queries.shape[1] > 1:
        return torch.bmm(queries, keys.permute(1, 2, 0))
    return (keys * queries[:, 0]).sum(-1).t()[:, None]


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """[B·K, G, R], [R, B·K, D] → [B·K, G, D]."""
    if weights.shape[1] > 1:
        return torch.bmm(weights, values.transpose(0, 1))
    return (weights[:, 0].t()[..., None] * values).sum(0)[:, None]


def _masked(scores: Tensor, mask: Tensor | None, rows: int) -> Tensor:
    """[B·K, G, S + R] with what ``mask`` [B, 1, 1, S + R], boolean or to be added, leaves out."""
    if mask is None:
        return scores
    by_row = scores.view(rows, -1, scores.shape[-1])
    masked = by_row.masked_fill(~mask[:, 0], -torch.inf) if mask.dtype == torch.bool else by_row + mask[:, 0]
    return masked.view_as(scores)


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **further: Any,
) -> Tensor | None:
    """As transformers' function of the same arguments: the newest token sees every token that is not padding."""
    newest = q_length == 1 and kv_offset == 0 and q_offset + 1 == kv_length
    if newest and mask_function is causal_mask_function and further.get("local_size") is None:
        if attention_mask is None:
            return None
        if attention_mask.shape[1] == kv_length:
            return attention_mask[:, None, None]
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask=attention_mask, **further
    )
