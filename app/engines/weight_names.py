"""A policy's weights under the names and in the layout that checkpoints hold them in, which is what engines load.

transformers keeps some weights otherwise in memory than in files: the experts of a layer as one tensor, the parts of a
fused projection, inner models under another prefix. It undoes that when it saves; here the same is done on the way to
an engine, for as few tensors at a time as the conversion needs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from app.policy.lora import base_model
from app.policy.sharding.merging import Weights, policy_weights
from app.policy.sharding.wrapping import inner_model, plain_model, unwrapped
from app.policy.weights import named_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_weights(policy: nn.Module, merged: bool = True) -> Weights:
    """(name, whole tensor) as :func:`policy_weights` gives them, named and laid out as in a checkpoint. Collective.

    One tensor is converted at a time, but where the family converts several together.
    """
    model, weights = inner_model(policy), policy_weights(policy, merged)
    conversions = _conversions(model)
    if not conversions:
        yield from weights
    elif any(len(getattr(each, "operations", ())) and len(each.target_patterns) > 1 for each in conversions):
        yield from _reverted(model, dict(weights))
    else:
        for name, tensor in weights:
            yield from _reverted(model, {name: tensor})


def separable_adapters(policy: nn.Module) -> list[str]:
    """Names of the policy's adapters as :func:`adapter_weights` gives them, where an engine can hold them beside the
    frozen weights: pairs of factors of linear layers whose names are those of checkpoints. Empty where it cannot."""
    if _conversions(inner_model(policy)):
        return []
    inner = base_model(policy)
    layers = {name: layer for name, layer in inner.named_modules() if hasattr(layer, "lora_A")}
    head = inner.get_output_embeddings()
    if any(layer is head or not isinstance(layer.get_base_layer(), nn.Linear) for layer in layers.values()):
        return []
    return [f"{unwrapped(name)}.lora_{factor}.weight" for name in layers for factor in "AB"]


def tied_widths(policy: nn.Module) -> dict[str, int]:
    """Columns of each weight that is another one's tensor under a second name, such as the head of tied embeddings."""
    plain = plain_model(policy)
    first = {name for name, _ in named_weights(plain)}
    every = named_weights(plain, remove_duplicate=False)
    return {name: tensor.shape[-1] for name, tensor in every if name not in first}


def _reverted(model: "PreTrainedModel", weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    from transformers.core_model_loading import revert_weight_conversion

    yield from revert_weight_conversion(model, weights).items()


def _conversions(model: "PreTrainedModel") -> list[Any]:
    """What transformers did when it read the model, or would do."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    found = getattr(model, "_weight_conversions", None)
    return list(get_model_conversion_mapping(model, add_legacy=False) if found is None else found)


def transposed_names(policy: nn.Module) -> frozenset[str]:
    """Names of weights that the family holds as [in, out], and an engine computes with as [out, in]: GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    modules = inner_model(policy).named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if isinstance(module, Conv1D))
