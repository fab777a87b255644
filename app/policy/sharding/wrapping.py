"""What a policy is wrapped in on its way to the ranks: sharding and adapters, and the Hugging Face model inside."""

import copy
from typing import TYPE_CHECKING, Any, cast

import torch

from app.policy.lora import WithoutAdapters, base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_fsdp2(model: Any) -> bool:
    """Whether ``model`` is sharded by ``fully_shard``."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_fsdp(model: Any) -> bool:
    """Whether ``model`` is a FullyShardedDataParallel."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


def unwrapped(name: str) -> str:
    """A parameter's name without what FullyShardedDataParallel adds."""
    return name.replace("_fsdp_wrapped_module.", "")


def called_model(model: Any) -> torch.nn.Module:
    """What is called inside FullyShardedDataParallel, hooks and all: the Hugging Face model, or adapters around it,
    some versions of which call its ``forward`` alone."""
    model = model.model if isinstance(model, WithoutAdapters) else model
    return cast("torch.nn.Module", model.module if is_fsdp(model) else model)


def inner_model(model: Any) -> "PreTrainedModel":
    """The Hugging Face model inside FullyShardedDataParallel and adapters, its parameters as they are."""
    return base_model(called_model(model))


def plain_model(model: Any) -> "PreTrainedModel":
    """The Hugging Face model that ``model`` is, without sharding, adapters or values: on the meta device."""
    base = inner_model(model)
    kind: Any = next(cls for cls in type(base).__mro__ if cls.__module__.startswith("transformers.models."))
    with torch.device("meta"):
        plain = kind._from_config(copy.deepcopy(base.config))
    plain.generation_config = base.generation_config
    if hasattr(base, "_weight_conversions"):  # of from_pretrained: how the names in its files became the model's
        plain._weight_conversions = base._weight_conversions
    return plain


def device_of(model: Any) -> torch.device:
    """Where the model computes; offloaded parameters lie elsewhere."""
    buffer, parameter = next(model.buffers(), None), next(model.parameters())
    if buffer is not None:
        return buffer.device
    return torch.device(parameter.device_mesh.device_type) if is_fsdp2(model) else parameter.device
