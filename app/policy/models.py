"""Policies and tokenizers: loaded from an HF folder or hub id, or built new from a configuration.

Three checks of growing cost: the dataclasses check themselves; :func:`check_path` looks at files and imports
nothing; :func:`check` imports transformers. Nothing here ever runs code that comes with a model.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.data.chat import ChatTemplate
from app.errors import ConfigurationError, closest
from app.policy.checkpoints import (
    check_checkpoint,
    is_checkpoint,
    load_trained_weights,
    seed_behind,
    trained_from,
)
from app.policy.lora import add_adapters
from app.policy.new_config import check_head_sizes, check_vocabulary, new_config
from app.policy.settings import PolicySettings
from app.policy.sources import (
    check_source,
    expanded,
    loading,
    nearest_sibling,
    quiet,
    refuse,
    refuse_untied,
)
from app.policy.surplus import refuse_surplus
from app.policy.tokenizers import NewTokenizerSettings, new_tokenizer
from app.policy.weights import named_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def check_path(settings: PolicySettings) -> None:
    """Looks for the files that ``settings`` name, without importing transformers or reading weights.

    Raises:
        ConfigurationError: a missing folder or file, or what can be neither a folder nor a hub id.
    """
    if settings.path is not None and is_checkpoint(settings.path):
        check_checkpoint(settings.path)
    elif settings.path is not None:
        check_source(settings.path, "policy.path", ("config.json",), ("*.safetensors", "*.bin"))
    if isinstance(settings.tokenizer, str):
        check_source(settings.tokenizer, "policy.tokenizer", (), ("tokenizer*", "vocab*"))
    elif settings.tokenizer is not None and settings.tokenizer.kind == "bpe":
        corpus = Path(settings.tokenizer.corpus).expanduser()
        if not corpus.is_file():
            refuse(f"no such file: {corpus}{nearest_sibling(corpus)}", "tokenizer.corpus")


def check(settings: PolicySettings) -> None:
    """All that can be known without weights; imports transformers.

    Raises:
        ConfigurationError: see :func:`check_path`; an unknown ``model_type`` or configuration key (with the
            nearest known one), sizes that do not fit together.
    """
    check_path(settings)
    if settings.config is not None:
        check_head_sizes(new_config(settings.config))


def load_tokenizer(settings: PolicySettings) -> "PreTrainedTokenizerBase":
    """The policy's tokenizer. It pads on the left; one without a pad token pads with its end token, which is
    safe because masks come from lengths.

    Raises:
        ConfigurationError: missing or broken files; no end token.
    """
    check_path(settings)
    if is_checkpoint(settings.path):
        return load_tokenizer(trained_from(settings))
    if isinstance(settings.tokenizer, NewTokenizerSettings):
        return new_tokenizer(settings.tokenizer)
    source = settings.path if settings.tokenizer is None else settings.tokenizer
    key = "policy.path" if settings.tokenizer is None else "policy.tokenizer"
    assert source is not None  # settings without a path have a tokenizer
    revision = settings.revision if settings.tokenizer is None else None
    with quiet(), loading("tokenizer", source, key):
        loader = _tokenizer_class(expanded(source), revision)
        tokenizer = loader.from_pretrained(
            expanded(source), revision=revision, trust_remote_code=False, padding_side="left"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"the tokenizer of {source} has no end token (eos_token)", key=key)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(source: str, revision: str | None) -> Any:
    """``tokenizer.json`` is read as it stands. AutoTokenizer builds another pipeline for some families (for every
    Qwen2 model its own, also for distillations with a foreign vocabulary), and then text becomes other tokens."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file

    found = cached_file(source, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return AutoTokenizer if found is None else PreTrainedTokenizerFast


def load_policy(settings: PolicySettings, seed: int = 0) -> "PreTrainedModel":
    """The policy, on the CPU, in eval mode as transformers leaves it.

    Args:
        settings: where it comes from.
        seed: of a new model's weights; the global random state is left as it was.

    Raises:
        ConfigurationError: missing, broken or incomplete files; a configuration that makes no model; a
            vocabulary smaller than the tokenizer's.
    """
    check(settings)
    if settings.path is not None and is_checkpoint(settings.path):
        origin = load_policy(trained_from(settings), seed_behind(settings.path, seed))
        return load_trained_weights(origin, settings.path)
    return finished(_pretrained(settings) if settings.config is None else new_model(settings, seed), settings, seed)


def finished(model: "PreTrainedModel", settings: PolicySettings, seed: int) -> "PreTrainedModel":
    """A model that was just built or loaded, with what ``settings`` add to it, in eval mode."""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        # It asks for the loss that balances a router's choices, which is no part of either objective here.
        model.config.get_text_config().output_router_logits = False
    if settings.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            refuse(f"{type(model).__name__} has none: leave this out", "gradient_checkpointing")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.lora is not None:
        model = add_adapters(model, settings.lora, seed)
    return model.eval()


def empty_policy(settings: PolicySettings) -> "PreTrainedModel":
    """The policy on the meta device: its layers and parameters without their values or any memory for them.

    Raises:
        ConfigurationError: see :func:`check`; a vocabulary smaller than the tokenizer's.
    """
    check(settings)
    if settings.config is not None:
        return _from_config(settings, _config_of_new(settings), "meta")
    model = _from_config(settings, _config_at(settings), "meta")
    _keep_float32(model, getattr(torch, settings.dtype))
    return _with_generation_config(model, settings)


def _keep_float32(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    """Weights that a family wants in float32 beside others of ``dtype``, as ``from_pretrained`` keeps them: a router's
    bias that is rounded chooses other experts."""
    plan = model._get_dtype_plan(dtype)
    for name, weight in named_weights(model):
        kept = next((plan[pattern] for pattern in plan if re.search(pattern.replace("*", ".*"), name)), None)
        if kept is not None:
            weight.data = weight.data.to(kept)


def _config_at(settings: PolicySettings) -> "PreTrainedConfig":
    """The configuration at ``settings.path``, and what it tells about the model before weights are read."""
    from transformers import AutoConfig

    path = settings.path
    assert path is not None
    with quiet(), loading("configuration", path, "policy.path"):
        config = AutoConfig.from_pretrained(expanded(path), revision=settings.revision, trust_remote_code=False)
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else quantised.quant_method
        refuse(f"the weights in {path} are quantised ({method}), and cannot be trained: give unquantised ones", "path")
    if settings.tokenizer is not None:
        check_vocabulary(config, load_tokenizer(settings))
    return config


def end_token_ids(
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel | None" = None,
    wanted: Sequence[str | int] | None = None,
) -> tuple[int, ...]:
    """Ids that end a completion, ascending: the tokenizer's end token, those of the model's generation configuration,
    of which some families have several, and the one that the chat template writes behind an assistant's words where
    it writes none of these (tokenizers of base models name another token, with the template of the chat model).

    Args:
        tokenizer: of the policy.
        model: the policy.
        wanted: these instead, see :class:`PolicySettings`.

    Raises:
        ConfigurationError: there is none; one of ``wanted`` is no token.
    """
    if wanted is not None:
        return tuple(sorted({_token_id(tokenizer, token) for token in wanted}))
    generation = getattr(model, "generation_config", None)
    extra = getattr(generation, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(extra if isinstance(extra, list) else [extra])} - {None}
    turn_end = _turn_end(tokenizer)
    if turn_end and ids.isdisjoint(turn_end):
        ids.add(turn_end[-1])
    if not ids:
        raise ConfigurationError("neither tokenizer nor generation_config names an end token", key="policy.tokenizer")
    return tuple(sorted(int(token) for token in ids))


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if tokenizer.chat_template is None:
        return []
    try:
        return ChatTemplate(tokenizer).turn_end
    except ConfigurationError:  # such as for one of several names: prompts that need the template say so
        return []


def _token_id(tokenizer: "PreTrainedTokenizerBase", token: str | int) -> int:
    found = tokenizer.convert_ids_to_tokens(token) if isinstance(token, int) else tokenizer.get_vocab().get(token)
    if found is None:
        near = closest(token, tokenizer.get_added_vocab(), cutoff=0.5) if isinstance(token, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigurationError(f"the tokenizer has no token {token!r}{hint}", key="policy.end_tokens")
    return token if isinstance(token, int) else int(found)


def _pretrained(settings: PolicySettings) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    path = settings.path
    assert path is not None
    _config_at(settings)
    with quiet(), loading("model", path, "policy.path"):
        model, report = AutoModelForCausalLM.from_pretrained(
            expanded(path),
            revision=settings.revision,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    # transformers would fill these with random numbers and go on
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report[what]):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reason = "lack" if what == "missing_keys" else "have another size than config.json says for"
            refuse(f"the weights in {path} {reason} {names[0]}{more}", "path")
    for name, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if name not in model.all_tied_weights_keys:  # transformers takes out what it found to differ
            refuse_untied(name, other, path)
    refuse_surplus(report["unexpected_keys"], model.state_dict().keys(), model, path)
    return _with_generation_config(model, settings)


def _with_generation_config(model: "PreTrainedModel", settings: PolicySettings) -> "PreTrainedModel":
    """Reads ``generation_config.json``, in which some families list several end tokens, or else ``config.json``.

    transformers does so for loaded models alone, not for those built from a configuration, and takes a broken file
    for a missing one.
    """
    from transformers import GenerationConfig
    from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

    path = settings.path
    assert path is not None
    source, revision = expanded(path), settings.revision
    with quiet(), loading("generation configuration", path, "policy.path"):
        found = cached_file(
            source, GENERATION_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        model.generation_config = GenerationConfig.from_pretrained(
            source,
            CONFIG_NAME if found is None else GENERATION_CONFIG_NAME,
            revision=revision,
            **({"_from_model_config": True} if found is None else {}),
        )
    return model


def new_model(settings: PolicySettings, seed: int) -> "PreTrainedModel":
    """The model of ``settings.config`` with random weights, on the CPU, as transformers draws them."""
    config = _config_of_new(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _from_config(settings, config, "cpu")


def _config_of_new(settings: PolicySettings) -> "PreTrainedConfig":
    assert settings.config is not None
    return new_config(settings.config, load_tokenizer(settings))


def _from_config(settings: PolicySettings, config: "PreTrainedConfig", device: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with quiet(), loading("model", config.model_type, "policy.config"), torch.device(device):
        return AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=False,
        )
