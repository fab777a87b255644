"""Whole weights of a sharded policy: gathered for a while on every rank to generate with, or one by one to be read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from app.policy.sharding.wrapping import device_of, is_fsdp, is_fsdp2, unwrapped
from app.policy.weights import named_weights

_WHOLE = "parameters_are_whole"
"""Attribute of a model inside :func:`whole_parameters`."""


@contextlib.contextmanager
def whole_parameters(model: Any) -> Iterator[None]:
    """Inside, any rank may call ``model`` any number of times without the others: for generation.

    Entering and leaving are collective for a sharded model, unless an outer one of these contexts is open. Every rank
    then holds all parameters on its device, in the precision that they are gathered in (for a model of 7 billion 15 GB
    under bf16-true, 30 GB otherwise), and gives them back at the end. They must not be changed inside.
    """
    if getattr(model, _WHOLE, False) or not (is_fsdp2(model) or is_fsdp(model)):
        yield
        return
    gathered = contextlib.ExitStack()
    # Lightning validates in inference mode, and tensors that are gathered in it could not be trained with.
    with torch.inference_mode(False), torch.no_grad():
        gathered.enter_context(_unsharded(model) if is_fsdp2(model) else _summoned(model))
    setattr(model, _WHOLE, True)
    try:
        yield
    finally:
        setattr(model, _WHOLE, False)
        with torch.inference_mode(False), torch.no_grad():
            gathered.close()


def give_back(model: Any) -> None:
    """Lets go of whatever parameters a forward pass has left gathered: under FSDP2 those of the root, until a backward
    pass follows."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def _unsharded(model: Any) -> Iterator[None]:
    model.set_reshard_after_forward(False)
    try:
        # One pass gathers layer by layer, in the order and on the streams of training; what it gathers then stays.
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device_of(model)), use_cache=False)
        yield
    finally:
        give_back(model)
        model.set_reshard_after_forward(True)
        if any(parameter.requires_grad for parameter in model.parameters()):
            model.set_reshard_after_forward(False, recurse=False)


@contextlib.contextmanager
def _summoned(model: Any) -> Iterator[None]:
    """FullyShardedDataParallel's own forward refuses to run on summoned parameters: it is stepped over.

    They are summoned as the master weights are: under low precision autocast takes over.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    wrappers = FSDP.fsdp_modules(model)
    low = torch.autocast(device_of(model).type, torch.bfloat16, enabled=model.low_precision)
    with FSDP.summon_full_params(model, writeback=False):
        for wrapper in wrappers:
            wrapper.forward = wrapper.module.__call__
        # Of the whole model alone: one context that is entered again inside itself would stay on for ever.
        model.forward = low(model.forward)
        try:
            yield
        finally:
            for wrapper in wrappers:
                del wrapper.forward


@contextlib.contextmanager
def readable(model: Any) -> Iterator[None]:
    """Inside, every parameter of ``model`` is a whole tensor or has ``full_tensor``. Collective."""
    with _summoned(model) if is_fsdp(model) and not getattr(model, _WHOLE, False) else contextlib.nullcontext():
        yield


@torch.no_grad()
def whole_weights(model: Any, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """All weights whole, in host memory, by name; tied ones once. Collective.

    Args:
        model: sharded or not.
        everywhere: on every rank; otherwise other ranks than 0 get an empty dictionary.
    """
    wanted = everywhere or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    weights: dict[str, torch.Tensor] = {}
    with readable(model):
        for name, weight in named_weights(model):
            whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
            if wanted:
                weights[unwrapped(name)] = whole.detach().to("cpu", copy=True)
    return weights
