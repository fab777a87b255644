"""What a configuration says of a model's layers, and of how long a row may be."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def context_length(config: "PreTrainedConfig") -> int | None:
    """Tokens, prompt and completion, whose positions the model can tell; None where it has no limit.

    Rotary embeddings of type "longrope" (Phi-3 and Phi-4-mini with 128k tokens) turn every token of a pass otherwise as
    soon as one row of it is longer than ``original_max_position_embeddings``: the log-probs of a short row would depend
    on its neighbours, and those of a long one on when they are asked for. Such a model's rows end there.
    """
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None), rope_switch(text)]
    return min((limit for limit in limits if limit is not None), default=None)


def rope_switch(config: "PreTrainedConfig") -> int | None:
    """The row length beyond which rotary embeddings change for the whole pass; None where they never do."""
    text = config.get_text_config()
    found = [_switch(each, text) for each in _rope_settings(getattr(text, "rope_parameters", None))]
    return min((length for length in found if length is not None), default=None)


def layer_configs(config: "PreTrainedConfig") -> list[Any]:
    """The text model's configuration, or where its layers differ (Gemma 4) that of each of them."""
    text = config.get_text_config()
    if not getattr(text, "is_heterogeneous", False):
        return [text]
    return [text.per_layer_config[layer] for layer in range(text.num_hidden_layers)]


def _rope_settings(parameters: Any) -> list[dict[str, Any]]:
    """One dictionary, or those of each kind of layer."""
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _switch(rope: dict[str, Any], config: "PreTrainedConfig") -> int | None:
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
