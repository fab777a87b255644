"""A key-value cache that is written in place instead of growing by concatenation.

Imports transformers at module level: import this module late.
"""

import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from app.errors import ConfigurationError
from app.policy.sharding.wrapping import inner_model

LEAST_ROOM, ROOM_SHARE = 8, 8
"""Room for an eighth more tokens, and for 8 at least, is made at once. More room means fewer copies but gaps between
rows, which slowed attention on a CPU more than the copies did (128 tokens of room: a fifth fewer tokens/s)."""


def new_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a model of this configuration.

    Layers of plain full attention are written in place; any other kind (sliding windows, linear attention) stays
    what transformers chose.
    """
    cache = DynamicCache(config=config)
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_argument(model: Any) -> str:
    """What the model's forward pass calls the cache that it is given.

    ``cache`` from transformers 5.24 on; before, ``past_key_values``, and ``cache_params`` in Mamba and its kin.

    Raises:
        ConfigurationError: it takes none.
    """
    known = inspect.signature(inner_model(model).forward).parameters
    for name in ("cache", "past_key_values", "cache_params"):
        if name in known:
            return name
    raise ConfigurationError(
        f"{inner_model(model).config.model_type} keeps no cache that generation could hand from token to token with "
        "the transformers engine; use VLLMEngine, where vLLM knows the family",
        key="engine",
    )


class InPlaceLayer(DynamicLayer):
    """Keys and values [B, heads, length, head size] are views of buffers with room to grow.

    The first call (the prompts) keeps what it is given; room is made by the first :meth:`reorder_cache` or the
    first token that does not fit.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_initialized = False
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values, self.length = key_states, value_states, key_states.shape[-2]
            return key_states, value_states
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.keys.shape[-2]:
            self.keys, self.values = (_with_room(x[:, :, :start]) for x in (self.keys, self.values))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was: repeats rows, drops rows."""
        self.keys, self.values = (_with_room(x[:, :, : self.length], beam_idx) for x in (self.keys, self.values))


def _with_room(states: Tensor, rows: Tensor | None = None) -> Tensor:
    """A copy of ``states`` (of the given rows of it) with space for more tokens."""
    kept = states if rows is None else states.index_select(0, rows)
    length = kept.shape[2]
    room = max(LEAST_ROOM, length // ROOM_SHARE)
    buffer = kept.new_empty(*kept.shape[:2], length + room, kept.shape[3])
    buffer[:, :, :length] = kept
    return buffer
