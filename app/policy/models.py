"""Policies and tokenizers: loaded from an HF folder or hub id, or built new from a configuration.

Three checks of growing cost: the dataclasses check themselves; :func:`check_path` looks at files and imports
nothing; :func:`check` imports transformers. Nothing here ever runs code that comes with a model.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.data.chat import ChatTemplate
from app.errors import ConfigurationError, closest, require_choice
from app.policy.checkpoints import (
    check_checkpoint,
    is_checkpoint,
    load_trained_weights,
    seed_behind,
    trained_from,
)
from app.policy.lora import add_adapters
from app.policy.settings import PolicySettings
from app.policy.sources import (
    check_replaceable,
    check_source,
    expanded,
    loading,
    nearest_sibling,
    quiet,
    refuse,
)
from app.policy.tokenizers import NewTokenizerSettings, new_tokenizer
from app.storage.checksums import list_files, write_list
from app.storage.durable import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LEGACY_CONFIG_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
"""Configuration keys that transformers still understands though no attribute bears their name."""


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
        _check_head_sizes(_new_config(settings.config))


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
    if settings.gradient_checkpointing:
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
    from transformers import AutoConfig

    path = settings.path
    assert path is not None
    with quiet(), loading("configuration", path, "policy.path"):
        config = AutoConfig.from_pretrained(expanded(path), revision=settings.revision, trust_remote_code=False)
    if settings.tokenizer is not None:
        _check_vocabulary(config, load_tokenizer(settings))
    return _with_generation_config(_from_config(settings, config, "meta"), settings)


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


def save_policy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    weights: dict[str, torch.Tensor] | None = None,
    add: Callable[[Path], None] | None = None,
) -> Path:
    """Writes an HF folder (safetensors, configuration, tokenizer) that ``from_pretrained`` and vLLM load, with a list
    of its files and their checksums.

    With ``weights`` these are written in the place of the model's own, which may then be on the meta device; ``add``
    writes further files into the folder.

    It is written beside its place and put there in one step: ``folder`` is never half a model, even after a crash, and
    an existing one is there until the new one is.

    Raises:
        ConfigurationError: there is something else than a model.
        OSError: the disk is full, or the place cannot be written into.
    """
    target = Path(folder)
    check_replaceable(target, "export.folder")

    def write(fresh: Path) -> None:
        with quiet(), _disk_errors(target):
            _save_model(model, fresh, weights)
            tokenizer.save_pretrained(fresh)
            if add is not None:
                add(fresh)
            write_list(fresh, list_files(fresh))

    write_whole(target, write)
    return target


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """safetensors reports a full disk by an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        cause = f"{error}"
        full = re.search(r"os error (\d+)", cause)
        if full is None:
            raise
        raise OSError(int(full[1]), os.strerror(int(full[1])), str(target)) from error


def _save_model(model: "PreTrainedModel", folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
    """The generation configuration is written as it was read: that of some published models (a temperature without
    ``do_sample``) transformers loads, but refuses to save, which would lose a trained policy."""
    from transformers import GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    generation, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = generation
    generation.to_json_file(folder / GENERATION_CONFIG_NAME)


def _pretrained(settings: PolicySettings) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    path = settings.path
    assert path is not None
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
    if settings.tokenizer is not None:
        _check_vocabulary(model.config, load_tokenizer(settings))
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
    tokenizer = load_tokenizer(settings)
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    # A family's defaults (LLaMA: 1 and 2) would be other tokens of this tokenizer.
    defaults = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}
    config = _new_config({**defaults, **settings.config})
    _check_vocabulary(config, tokenizer)
    return config


def _from_config(settings: PolicySettings, config: "PreTrainedConfig", device: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with quiet(), loading("model", config.model_type, "policy.config"), torch.device(device):
        return AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=False,
        )


def _new_config(entries: dict[str, Any]) -> "PreTrainedConfig":
    """An HF configuration. Names that its class does not know are refused: transformers would keep quiet."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = entries["model_type"]
    require_choice(kind, tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), "policy.config.model_type", listed=False)
    family = CONFIG_MAPPING[kind]
    known = {*family().to_dict(), *family.attribute_map, *LEGACY_CONFIG_KEYS}
    for name in entries:
        require_choice(name, tuple(sorted(known)), f"policy.config.{name}", listed=False)
    with quiet(), loading("configuration", kind, "policy.config"):
        return AutoConfig.for_model(kind, **{name: entries[name] for name in entries if name != "model_type"})


def _check_head_sizes(config: "PreTrainedConfig") -> None:
    """Divisions that transformers leaves to the first forward pass."""
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "head_dim", None) is None and hidden % heads:
        refuse(f"{heads} attention heads do not divide hidden_size {hidden}", "config.num_attention_heads")
    if heads % groups:
        refuse(f"{groups} does not divide num_attention_heads {heads}", "config.num_key_value_heads")


def _check_vocabulary(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    if config.vocab_size < len(tokenizer):
        message = f"the model knows {config.vocab_size} tokens, its tokenizer has {len(tokenizer)}"
        raise ConfigurationError(message, key="policy.config.vocab_size")
