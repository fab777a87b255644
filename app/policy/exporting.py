"""A policy as a Hugging Face folder: what came with it stays as it came, what is new is written for older readers too.

transformers 5 writes configurations and tokenizers that transformers 4 cannot read, or reads as another model: it
drops ``rope_theta`` for ``rope_parameters``, and names tokenizer classes that are new.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.policy.checkpoints import origin_of
from app.policy.settings import PolicySettings
from app.policy.sources import check_replaceable, expanded, quiet
from app.storage.checksums import list_files, write_list
from app.storage.durable import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
"""What tokenizers are made of, under the names that families have for it."""
TEMPLATES = "additional_chat_templates"
"""Folder of further templates."""


def save_policy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    weights: dict[str, torch.Tensor] | None = None,
    add: Callable[[Path], None] | None = None,
    settings: PolicySettings | None = None,
) -> Path:
    """Writes an HF folder (safetensors, configuration, tokenizer) that ``from_pretrained`` and vLLM load, with a list
    of its files and their checksums.

    With ``weights`` these are written in the place of the model's own, which may then be on the meta device; ``add``
    writes further files into the folder. Where ``settings`` say that configuration or tokenizer came from a folder or
    a hub, they are written as they were there, for readers that are older than transformers 5.

    It is written beside its place and put there in one step: ``folder`` is never half a model, even after a crash, and
    an existing one is there until the new one is.

    Raises:
        ConfigurationError: there is something else than a model.
        OSError: the disk is full, or the place cannot be written into.
    """
    target = Path(folder)
    check_replaceable(target, "export.folder")
    origin = None if settings is None else origin_of(settings)

    def write(fresh: Path) -> None:
        with quiet(), _disk_errors(target):
            _save_model(model, fresh, weights)
            _restore_config(fresh / "config.json", origin)
            _save_tokenizer(tokenizer, fresh, origin)
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


def _restore_config(file: Path, origin: PolicySettings | None) -> None:
    """Writes the configuration over as its readers know it; the numbers are the same.

    That of a new model also gets the names that transformers 4 has for its rotary embeddings, and those that it was
    given under: transformers 5 has renamed others (``num_experts``).
    """
    written = json.loads(file.read_text())
    if origin is not None and origin.path is not None:
        found = _found(origin.path, origin.revision, "config.json")
        kept = json.loads(found.read_text()) if found is not None else written
        kept["architectures"] = written["architectures"]
        config = _of_dtype(kept, written["dtype"])
    else:
        given = {} if origin is None or origin.config is None else origin.config
        config = _updated({**written, **_older_rope(written)}, given)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _of_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """With the dtype of the weights, in inner configurations too; transformers 4 calls it ``torch_dtype``."""
    inner = {name: _of_dtype(value, dtype) for name, value in config.items() if isinstance(value, dict)}
    return {**config, **inner, **dict.fromkeys({"dtype", "torch_dtype"} & config.keys(), dtype)}


def _updated(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """With what is given, in inner configurations too."""
    inner = {name: _updated(config[name], value) for name, value in given.items() if _is_inner(name, value, config)}
    return {**config, **given, **inner}


def _is_inner(name: str, value: Any, config: dict[str, Any]) -> bool:
    return name.endswith("_config") and isinstance(value, dict) and isinstance(config.get(name), dict)


def _older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` under the names of transformers 4, in inner configurations too."""
    inner = {name: value for name, value in config.items() if _is_inner(name, value, config)}
    older: dict[str, Any] = {name: {**value, **_older_rope(value)} for name, value in inner.items()}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return older
    if "full_attention" in rope:  # by kind of layer, as in Gemma 3
        local = (rope.get("sliding_attention") or {}).get("rope_theta")
        older |= {} if local is None else {"rope_local_base_freq": local}
        rope = rope["full_attention"]
    older |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return older


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path, origin: PolicySettings | None) -> None:
    if origin is not None and _copy_tokenizer(origin, folder):
        return
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _copy_tokenizer(origin: PolicySettings, folder: Path) -> bool:
    """Copies the files of a tokenizer that was not made here; whether there are any."""
    source, revision = (origin.path, origin.revision) if origin.tokenizer is None else (origin.tokenizer, None)
    if not isinstance(source, str):
        return False
    found = {name: _found(source, revision, name) for name in TOKENIZER_FILES}
    for name, file in found.items():
        if file is not None:
            shutil.copyfile(file, folder / name)
    templates = Path(expanded(source)) / TEMPLATES
    if templates.is_dir():
        shutil.copytree(templates, folder / TEMPLATES)
    return any(found.values())


def _found(source: str, revision: str | None, name: str) -> Path | None:
    """The file of this name in a folder, or of a hub in its cache, where loading has put it; None where there is
    none."""
    from transformers.utils import cached_file

    path = cached_file(
        expanded(source), name, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return None if path is None else Path(path)
