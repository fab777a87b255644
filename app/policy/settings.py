"""Where a policy comes from, as settings."""

from dataclasses import dataclass
from typing import Any, Literal

from app.errors import require_choice
from app.policy.lora import LoraSettings
from app.policy.sources import refuse
from app.policy.tokenizers import NewTokenizerSettings

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PolicySettings:
    """Where a policy comes from.

    Attributes:
        path: HF folder or hub id of a pretrained causal language model, or a checkpoint of ``fit`` (``….ckpt``); or
            give ``config``.
        revision: branch, tag or commit on the hub.
        config: an HF configuration with its ``model_type``: a new model with random weights. ``vocab_size``
            and the ids of special tokens come from the tokenizer where they are not given.
        tokenizer: folder or hub id, settings of a new one, or null: the one at ``path``.
        end_tokens: the tokens that end a completion, as they are written or as ids. By default the tokenizer's EOS,
            those of ``generation_config.json``, and the one that the chat template ends an assistant's turn with.
        dtype: of the parameters.
        attn_implementation: null lets transformers choose.
        gradient_checkpointing: activations are computed again in the backward pass, to save memory.
        lora: low-rank adapters around the frozen policy, the only weights that are then trained; null trains all.
        verify: compare the checksums of the checkpoint or export that weights are read from, at ``path`` or at
            ``--ckpt_path``, before anything slow starts; false looks only whether all of it is there.
    """

    path: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | NewTokenizerSettings | None = None
    end_tokens: tuple[str | int, ...] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.end_tokens is not None:
            object.__setattr__(self, "end_tokens", tuple(self.end_tokens))
            if not self.end_tokens:
                refuse("name at least one, or leave it out", "end_tokens")
        if (self.path is None) == (self.config is None):
            refuse("give exactly one of path (a pretrained model) and config (a new one)", "path")
        if self.config is not None and "model_type" not in self.config:
            refuse("model_type is missing, such as qwen2 or llama", "config")
        if self.config is not None and self.tokenizer is None:
            refuse("a new model needs one: a folder, a hub id, or settings of a new one", "tokenizer")
        if self.revision is not None and self.path is None:
            refuse("a revision belongs to a path on the hub", "revision")
        require_choice(self.dtype, DTYPES, "policy.dtype")
        if self.attn_implementation is not None:
            require_choice(self.attn_implementation, ATTENTION, "policy.attn_implementation")
