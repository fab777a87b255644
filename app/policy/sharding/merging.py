"""A policy's weights as the model alone would have them: whole, by their names, and adapters merged into them."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from app.policy.lora import base_name, has_adapters, is_adapter
from app.policy.sharding.gathering import readable
from app.policy.sharding.wrapping import unwrapped
from app.policy.weights import named_weights

Weights = Iterator[tuple[str, torch.Tensor]]
"""(name, whole tensor)."""


def policy_weights(policy: nn.Module, merged: bool = True) -> Weights:
    """(name, tensor) of every weight under its name in the Hugging Face model, detached and whole.

    Tied tensors come once for each of their names: an engine may hold a separate head. LoRA adapters are merged into
    their base weights on the way, the policy itself is left as it is; without ``merged`` the base weights come as they
    are. Sharded tensors are gathered one at a time, which is a collective: every rank has to iterate to the end.
    """
    with torch.no_grad(), readable(policy):
        inner = policy.get_base_model() if has_adapters(policy) else policy
        modules = dict(inner.named_modules(remove_duplicate=False))
        for name, weight in named_weights(inner, remove_duplicate=False):
            if not is_adapter(name):
                whole = _whole(weight)
                yield unwrapped(base_name(name)), _merged(name, whole, modules) if merged else whole


def adapter_weights(policy: nn.Module) -> Weights:
    """(name, tensor) of the active adapter's factors, whole: ``<layer>.lora_A.weight`` [r, in] and
    ``<layer>.lora_B.weight`` [out, r], the latter with the adapter's scaling, so that the layer computes
    W + B A. Collective for a sharded policy, as :func:`policy_weights` is."""
    inner = policy.get_base_model()
    with torch.no_grad(), readable(policy):
        modules = dict(inner.named_modules())
        for name, weight in named_weights(inner):
            if is_adapter(name):
                layer, _, factor = name.partition(".lora_")
                which, adapter, _ = factor.split(".")
                scaling = modules[layer].scaling[adapter] if which == "B" else 1.0
                yield f"{unwrapped(layer)}.lora_{which}.weight", _whole(weight) * scaling


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _merged(name: str, weight: torch.Tensor, modules: dict[str, nn.Module]) -> torch.Tensor:
    """The weight with the adapters of every layer that is wrapped around it: W + scaling · B A for each.

    Where several tensors of a module are adapted, such as those of all experts, peft wraps it once for each of them.
    """
    attribute = name.rpartition(".")[2]
    for layer in _wrapping_layers(name, modules):
        if getattr(layer, "parameter_name", "weight") == attribute and not layer.merged:
            with _whole_adapters(layer):
                for adapter in layer.active_adapters:
                    weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _wrapping_layers(name: str, modules: dict[str, nn.Module]) -> Iterator[nn.Module]:
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part == "base_layer":
            yield modules[".".join(parts[:place])]


@contextlib.contextmanager
def _whole_adapters(layer: nn.Module) -> Iterator[None]:
    """Inside, the layer's own adapters are whole: peft reshapes them, which shards do not take. Collective."""
    held: list[tuple[nn.Module, str, nn.Parameter]] = []
    for name, module in layer.named_modules():
        if name.startswith("lora_"):
            held += [(module, own, value) for own, value in module._parameters.items() if value is not None]
    for module, own, value in held:
        module._parameters[own] = nn.Parameter(_whole(value), requires_grad=False)
    try:
        yield
    finally:
        for module, own, value in held:
            module._parameters[own] = value
