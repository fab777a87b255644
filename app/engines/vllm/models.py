"""Which policies vLLM runs on this machine, by their configuration; and how it leaves the trainer's classes be."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from app.errors import ConfigurationError
from app.policy.context import layer_configs

NOT_TAKEN = {
    "bloom": "vLLM 0.32 looks for all weights of BLOOM in 'transformer', where its tied head has no place",
}
"""Families whose weights vLLM's own loader does not take, and why (BloomForCausalLM.load_weights)."""
ONE_MORE = ("cohere2",)
"""Families whose windows vLLM 0.32 makes one token wider than transformers does (CohereAttention)."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_model(folder: Path, dtype: str) -> None:
    """Refuses what vLLM would run wrong, or would stop at in the middle of its first forward pass.

    Raises:
        ConfigurationError: a family in :data:`NOT_TAKEN`; heads of a size without a kernel; experts, or layers
            that carry a state, on a CPU.
    """
    from transformers import AutoConfig
    from vllm.platforms import current_platform

    config = AutoConfig.from_pretrained(folder)
    if config.model_type in NOT_TAKEN:
        raise ConfigurationError(f"{NOT_TAKEN[config.model_type]}: use the transformers engine", key="engine")
    if current_platform.is_cpu():
        _check_experts(config)
        _check_state(folder, config)
    for size in sorted(head_sizes(config)):
        _check_head_size(size, dtype)


def for_vllm(config: Any) -> Any:
    """A copy of a policy's configuration with which vLLM computes what transformers does with the original."""
    copied = copy.deepcopy(config)
    if copied.model_type in ONE_MORE and copied.sliding_window is not None:
        copied.sliding_window -= 1
    return copied


def takes_adapters(folder: Path) -> bool:
    """Whether vLLM's own model of this configuration can hold adapters beside its weights."""
    from vllm.model_executor.models import supports_lora

    own = _own_model(folder)
    return own is not None and supports_lora(own)


def _own_model(folder: Path) -> type | None:
    """vLLM's class for this configuration, where it has one of its own."""
    from vllm.model_executor.models.registry import ModelRegistry

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return ModelRegistry.models[name].load_model_cls() if name in ModelRegistry.models else None


def head_sizes(config: Any) -> set[int]:
    """Sizes of the attention heads of all layers; none where there is no attention, or a latent one."""
    sizes = set()
    for layer in layer_configs(config):
        heads = getattr(layer, "num_attention_heads", None)
        if heads and not getattr(layer, "kv_lora_rank", None):
            sizes.add(getattr(layer, "head_dim", None) or layer.hidden_size // heads)
    return sizes


def _check_experts(config: Any) -> None:
    counts = [getattr(config.get_text_config(), name, None) for name in EXPERT_COUNTS]
    if any(isinstance(count, int) and count > 1 for count in counts):
        raise ConfigurationError(
            "vLLM's CPU build keeps the experts that it started with, whatever weights it is sent: "
            f"{config.model_type} cannot be sampled with it on a CPU; use the transformers engine",
            key="engine",
        )


def _check_state(folder: Path, config: Any) -> None:
    """Prompts are not cut on a CPU (see ``local``): vLLM 0.32 then starts no such model with its prefix cache, and
    without it Mamba 2 was off by nats a token."""
    from vllm.model_executor.models import has_inner_state

    own = _own_model(folder)
    if own is not None and has_inner_state(own):
        raise ConfigurationError(
            f"{config.model_type} carries a state from token to token, which vLLM's CPU build computes otherwise than "
            "transformers: use the transformers engine",
            key="engine",
        )


def _check_head_size(size: int, dtype: str) -> None:
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.attention.selector import AttentionSelectorConfig

    wanted = AttentionSelectorConfig(size, getattr(torch, dtype), "auto", None)
    try:
        backend = resolve_obj_by_qualname(current_platform.get_attn_backend_cls(None, wanted))
    except ValueError as error:
        raise ConfigurationError(f"vLLM cannot run attention heads of {size} here: {error}", key="engine") from error
    if not backend.supports_head_size(size):
        sizes = ", ".join(map(str, backend.get_supported_head_sizes()))
        raise ConfigurationError(
            f"vLLM's attention has no kernel for heads of {size} (hidden_size / num_attention_heads) on this "
            f"machine; choose one of {sizes}, or the transformers engine",
            key="engine",
        )


@contextlib.contextmanager
def classes_as_they_were(colocated: bool) -> Iterator[None]:
    """Inside, an engine in the trainer's process leaves transformers' classes alone.

    A family that vLLM has no model of its own for runs on transformers' class, which vLLM changes in place, so that it
    can be compiled: the trainer's policy, of the same class, could not be called any more. Nothing is compiled where
    there are no CUDA graphs, and there the change is left out; elsewhere such a family needs a process of its own.
    """
    if not colocated:
        yield
        return
    from vllm.model_executor.models.transformers.base import Base
    from vllm.platforms import current_platform

    def refuse(self: Any, cls: type, *_: Any, **__: Any) -> None:
        raise ConfigurationError(
            f"vLLM has no model of its own for {cls.__name__} and changes transformers' class, which the trainer uses "
            "too: use placement: separate",
            key="engine.placement",
        )

    changed = Base._decorate_cls_for_torch_compile
    compiles = current_platform.support_static_graph_mode()
    Base._decorate_cls_for_torch_compile = refuse if compiles else lambda self, *_, **__: None
    try:
        yield
    finally:
        Base._decorate_cls_for_torch_compile = changed
