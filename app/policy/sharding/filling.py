"""Values for a model that was built on the meta device.

Of a safetensors file a rank reads no more than the rows that it keeps. A new model is drawn whole, in host memory, on
every rank: what its family draws in its constructor, and in what order, only building it tells.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from app.policy.checkpoints import check_trained, is_checkpoint, read_weights, seed_behind, trained_from
from app.policy.lora import base_model, base_name, first_value, is_adapter
from app.policy.models import new_model
from app.policy.sharding.stored import stored_weights
from app.policy.sharding.wrapping import plain_model
from app.policy.weights import named_weights

if TYPE_CHECKING:
    from app.policy.models import PolicySettings


@torch.no_grad()
def fill(model: Any, settings: "PolicySettings", seed: int, device: torch.device) -> None:
    """Puts values into every buffer, and into this rank's rows of every parameter.

    Args:
        model: sharded by ``fully_shard``, with memory but without values.
        settings: where values are read from, or nowhere: then they are drawn as for a new model.
        seed: of drawn values, and of adapters.
        device: where buffers belong.

    Raises:
        ConfigurationError: see :func:`app.policy.sharding.stored.stored_weights`; a checkpoint of another policy.
    """
    # Buffers come first: a family computes them where it also draws parameters, and writes over some that it should
    # leave alone.
    _compute_buffers(model, device)
    _fill_weights(model, settings, seed)


def _compute_buffers(model: Any, device: torch.device) -> None:
    """Tables of rotary embeddings and the like, which no checkpoint holds, and the first values of those that one may.

    A family computes them in the function that draws its parameters. These are marked as transformers marks those that
    it has loaded, which are not drawn again.
    """
    base = base_model(model)
    parameters = list(base.parameters())
    for parameter in parameters:
        parameter._is_hf_initialized = True
    for module in base.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
    for owner, module in _owned(base, base):  # those without buffers too: some compute buffers of the modules in them
        with _whole_parameters(module):
            owner._init_weights(module)
    for parameter in parameters:
        del parameter._is_hf_initialized


@contextlib.contextmanager
def _whole_parameters(module: torch.nn.Module) -> Iterator[None]:
    """Inside, the module's own parameters are whole tensors without values, which takes no memory until it is written
    to; families that calculate with them cannot do so with shards."""
    held = {name: value for name, value in module._parameters.items() if value is not None}
    for name, value in held.items():
        shown = torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False)
        shown._is_hf_initialized = True
        module._parameters[name] = shown
    try:
        yield
    finally:
        module._parameters.update(held)


def _owned(module: torch.nn.Module, owner: Any) -> Iterator[tuple[Any, torch.nn.Module]]:
    """Every module below ``module``, children first, with the model of a family that it belongs to."""
    from transformers import PreTrainedModel

    owner = module if isinstance(module, PreTrainedModel) else owner
    for child in _own_children(module):
        yield from _owned(child, owner)
    yield owner, module


def _own_children(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Without adapters, which were added later."""
    return [child for name, child in module.named_children() if not is_adapter(f".{name}")]


def _fill_weights(model: Any, settings: "PolicySettings", seed: int) -> None:
    if is_checkpoint(settings.path):
        assert settings.path is not None
        _fill_weights(model, trained_from(settings), seed_behind(settings.path, seed))
        _fill_trained(model, settings.path)
        return
    weights = dict(named_weights(model))
    in_base = {base_name(name): weight for name, weight in weights.items() if not is_adapter(name)}
    if settings.path is not None:
        for stored in stored_weights(settings, plain_model(model)):
            _fill_rows(in_base[stored.name], stored.rows)
    else:
        for name, whole in named_weights(new_model(settings, seed)):
            _fill_rows(in_base[name], _rows_of(whole))
    for name in filter(is_adapter, weights):
        _fill_rows(weights[name], _rows_of(first_value(name, weights[name].shape, seed)))


def _fill_trained(model: Any, path: str) -> None:
    trained = read_weights(path)
    check_trained(trained, model, path)
    for name, weight in named_weights(model):
        if name in trained:
            _fill_rows(weight, _rows_of(trained[name]))


def _rows_of(whole: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
    return lambda start, stop: whole[start:stop] if whole.dim() else whole


def _fill_rows(weight: Any, read: Callable[[int, int], torch.Tensor]) -> None:
    """Copies rows [start, stop), as ``read`` gives them, into this rank's part of a DTensor: torch.chunk's split.

    A buffer is whole on every rank.
    """
    count = weight.shape[0] if weight.dim() else 1
    if not hasattr(weight, "device_mesh"):
        weight.copy_(read(0, count))
        return
    local = weight.to_local()
    start = min(weight.device_mesh.get_local_rank() * -(-count // weight.device_mesh.size()), count)
    local.copy_(read(start, start + local.shape[0]))
