"""A policy laid on the ranks: built empty and filled row by row (fsdp2), or split once it is loaded (fsdp)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from app.errors import ConfigurationError
from app.policy.checkpoints import origin_of
from app.policy.lora import base_model
from app.policy.models import empty_policy, finished
from app.policy.sharding.filling import fill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.settings import PolicySettings


def build_fsdp2(
    settings: "PolicySettings", seed: int, device: torch.device, precision: str, frozen: bool, offload: bool
) -> "PreTrainedModel":
    """The policy in DTensors, of which this rank holds its own rows alone. Collective.

    Args:
        settings: where the policy comes from.
        seed: of new weights.
        device: where this rank computes.
        precision: the trainer's.
        frozen: nothing in it is trained.
        offload: what is sharded waits in host memory.

    Raises:
        ConfigurationError: see :func:`app.policy.models.load_policy`; a family that does not name its layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    origin = origin_of(settings)
    model = finished(empty_policy(origin), origin, seed)
    if frozen:
        model.requires_grad_(False)
    low = torch.bfloat16 if precision == "bf16-true" else None
    host = CPUOffloadPolicy(pin_memory=device.type != "cpu")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32),
        "offload_policy": host if offload else OffloadPolicy(),
    }
    for layer in _layers(model):
        fully_shard(layer, **options)
    # What is not trained has no backward pass that would shard it again.
    fully_shard(model, reshard_after_forward=True if frozen else None, **options)
    model.to_empty(device="cpu" if offload else device)
    fill(model, settings, seed, device)
    return model


def wrap_fsdp(
    model: "PreTrainedModel", device: torch.device, precision: str, offload: bool, settings: dict[str, Any]
) -> "PreTrainedModel":
    """A loaded policy in flat parameters, moved to the device layer by layer as it is split. Collective.

    Args:
        model: whole, in host memory.
        device: where this rank computes.
        precision: the trainer's.
        offload: the flat parameters wait in host memory.
        settings: keyword arguments of FullyShardedDataParallel.

    Raises:
        ConfigurationError: a family that does not name its layers.
    """
    from torch.distributed.fsdp import CPUOffload, MixedPrecision
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    low = torch.float32 if precision == "32-true" else torch.bfloat16
    options: dict[str, Any] = {
        "mixed_precision": MixedPrecision(low, torch.float32, torch.float32),
        **settings,
        "use_orig_params": True,
    }
    if offload:
        options["cpu_offload"] = CPUOffload(True)
    classes = {type(layer) for layer in _layers(model)}
    wrapped = FSDP(model, auto_wrap_policy=ModuleWrapPolicy(classes), device_id=device, **options)
    wrapped.matrix_names, wrapped.low_precision = matrices, low is torch.bfloat16
    return cast("PreTrainedModel", wrapped)


def _layers(model: Any) -> list[torch.nn.Module]:
    """The decoder layers: what is gathered at once. Some families also name what lies in a layer (Mamba its mixer)."""
    names = set(base_model(model)._no_split_modules or ())
    layers = list(dict.fromkeys(_outermost(model, lambda module: type(module).__name__ in names)))  # shared ones once
    if not layers:
        raise ConfigurationError(
            f"{type(base_model(model)).__name__} does not say which of its modules are layers: it cannot be sharded; "
            "use strategy ddp",
            key="trainer.strategy",
        )
    return layers


def _outermost(module: torch.nn.Module, wanted: Callable[[torch.nn.Module], bool]) -> list[torch.nn.Module]:
    """Those that are wanted and lie in no other one that is."""
    if wanted(module):
        return [module]
    return [found for child in module.children() for found in _outermost(child, wanted)]
