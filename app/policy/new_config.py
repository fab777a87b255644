"""The configuration of a new model: an HF configuration as the YAML file holds it, or as a hub's config.json does."""

import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

from app.errors import ConfigurationError, require_choice
from app.policy.sources import loading, quiet, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

LEGACY_CONFIG_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
"""Configuration keys that transformers still understands though no attribute bears their name."""
SPECIAL_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def new_config(entries: dict[str, Any], tokenizer: "PreTrainedTokenizerBase | None" = None) -> "PreTrainedConfig":
    """The configuration that ``entries`` describe.

    Args:
        entries: its keys, ``model_type`` among them; those of an inner configuration (``text_config``) in a dictionary.
        tokenizer: the size of the vocabulary and the special tokens that the entries leave out are its.

    Raises:
        ConfigurationError: an unknown model or key (with the nearest known one), which transformers would take and
            never read; values that make no configuration; a vocabulary smaller than the tokenizer's.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = entries["model_type"]
    require_choice(kind, tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), "policy.config.model_type", listed=False)
    family = CONFIG_MAPPING[kind]
    with quiet(), loading("configuration", kind, "policy.config"):
        _check_keys(family, entries, "policy.config")
        if tokenizer is not None:
            entries = _completed(family, entries, tokenizer)
        config = AutoConfig.for_model(kind, **{name: entries[name] for name in entries if name != "model_type"})
    if tokenizer is not None:
        check_vocabulary(config, tokenizer)
    return config


def _check_keys(family: Any, entries: dict[str, Any], place: str) -> None:
    """Refuses keys that neither the family's configuration nor its code knows: what they set would have no effect.

    Published files hold keys that no attribute bears, which a class turns into others, or which a model reads where
    they are given: ``head_dim``, ``partial_rotary_factor``, ``rope_local_base_freq``.
    """
    known = {*family().to_dict(), *family.attribute_map, *LEGACY_CONFIG_KEYS}
    for name, value in entries.items():
        if name not in known and not _is_read(family, name):
            require_choice(name, tuple(sorted(known)), f"{place}.{name}", listed=False)
        inner = _inner_family(family, name, value)
        if inner is not None and isinstance(value, dict):
            _check_keys(inner, value, f"{place}.{name}")


def _inner_family(family: Any, name: str, value: Any) -> Any:
    """The family of an inner configuration; None where there is none, or any that the value does not name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    inner = family.sub_configs.get(name)
    if inner is None or hasattr(inner, "attribute_map"):
        return inner
    named = value.get("model_type") if isinstance(value, dict) else None
    return CONFIG_MAPPING[named] if named in CONFIG_MAPPING else None  # noqa: SIM401  get does not load it


def _is_read(family: Any, name: str) -> bool:
    """Whether a family's code reads this key of its configuration: as an attribute, or by its name."""
    from transformers import modeling_rope_utils
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    classes = [family, MODEL_FOR_CAUSAL_LM_MAPPING.get(family, None)]
    modules = [sys.modules[cls.__module__] for cls in classes if cls is not None] + [modeling_rope_utils]
    reading = re.compile(rf"""\b(?:config|self)\.{re.escape(name)}\b|["']{re.escape(name)}["']""")
    return any(reading.search(inspect.getsource(module)) for module in modules)


def _completed(family: Any, entries: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """With what the tokenizer says: a family's defaults (LLaMA: tokens 1 and 2) would be other tokens of this one."""
    values = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}}
    text = _inner_family(family, "text_config", entries.get("text_config"))
    if text is not None:
        inner = {**_of(text, values), **(entries.get("text_config") or {})}
        entries = {**entries, "text_config": inner}
    return {**_of(family, values), **entries}


def _of(family: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that a family has keys for, and null only where one may be."""
    known = {*family().to_dict(), *family.attribute_map}
    types = {name: str(field.type) for name, field in family.__dataclass_fields__.items()}
    return {
        name: value
        for name, value in values.items()
        if name in known and (value is not None or "None" in types.get(name, "None"))
    }


def check_head_sizes(config: "PreTrainedConfig") -> None:
    """Divisions that transformers leaves to the first forward pass."""
    text = config.get_text_config()
    hidden, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
    groups = getattr(text, "num_key_value_heads", None) or heads
    if not (isinstance(hidden, int) and isinstance(heads, int) and isinstance(groups, int) and heads and groups):
        return  # no attention, or another number of heads in each layer
    if getattr(text, "head_dim", None) is None and hidden % heads:
        refuse(f"{heads} attention heads do not divide hidden_size {hidden}", "config.num_attention_heads")
    if heads % groups:
        refuse(f"{groups} does not divide num_attention_heads {heads}", "config.num_key_value_heads")


def check_vocabulary(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuses a tokenizer with more tokens than the model has."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is None:
        refuse(f"{config.model_type} is no language model of its own: it has no vocabulary", "config.model_type")
    if size < len(tokenizer):
        message = f"the model knows {size} tokens, its tokenizer has {len(tokenizer)}"
        raise ConfigurationError(message, key="policy.config.vocab_size")
