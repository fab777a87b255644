"""The tensors of a model's safetensors files as the model has them: under its names and in its layout.

Some families are stored in another layout than they have in memory: every expert of a mixture by itself, and in memory
all of a layer in one tensor, or under names with another beginning. What ``from_pretrained`` makes of it is listed in
:mod:`transformers.conversion_mapping`; the same list is applied here, to those tensors at a time that belong together.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from app.policy.sources import expanded, loading, refuse, refuse_untied
from app.policy.surplus import refuse_surplus
from app.policy.weights import named_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.settings import PolicySettings

_AT_ONCE = 4096
"""Rows that are compared at once."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor under its name in the model, of which nothing need be read yet.

    Attributes:
        name: in the model.
        shape: as it is stored.
        rows: (start, stop) → these rows; all of a tensor without rows.
    """

    name: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], torch.Tensor]


def stored_weights(settings: "PolicySettings", model: "PreTrainedModel") -> Iterator[StoredTensor]:
    """Every weight of ``model`` from the files at ``settings.path``; tied ones once, under their first name.

    Tensors that are stored as the model has them are read row by row; of others, what makes one tensor of the model is
    in memory at a time. Tied tensors may be stored under any of their names.

    Args:
        settings: where the files are.
        model: without adapters and sharding; its values do not matter, it may be on the meta device.

    Raises:
        ConfigurationError: there are no such files, or broken ones; a tensor is missing, or of another shape than the
            model's; tied tensors differ.
    """
    source = settings.path or ""
    weights = dict(named_weights(model, remove_duplicate=False))
    names = Counter(id(tensor) for tensor in weights.values())
    first_names = {id(tensor): name for name, tensor in named_weights(model)}
    tied: dict[str, StoredTensor] = {}
    missing = set(first_names.values())
    for stored in _converted(_open_files(settings), model, source):
        weight = weights[stored.name]
        if stored.shape != tuple(weight.shape):
            size = f"has the shape {stored.shape}, config.json says {tuple(weight.shape)}"
            refuse(f"{stored.name} in {source} {size}", "path")
        first = first_names[id(weight)]
        if first in tied:
            _check_equal(tied[first], stored, source)
            continue
        if names[id(weight)] > 1:
            tied[first] = stored
        missing.discard(first)
        yield StoredTensor(first, stored.shape, stored.rows)
    refuse_missing(missing, source)


def refuse_missing(names: "set[str]", source: str) -> None:
    """Refuses weights without tensors of these names, if there are any."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        refuse(f"the weights in {source} lack {min(names)}{more}", "path")


def _check_equal(one: StoredTensor, other: StoredTensor, source: str) -> None:
    for start in range(0, one.shape[0], _AT_ONCE):
        if not torch.equal(one.rows(start, start + _AT_ONCE), other.rows(start, start + _AT_ONCE)):
            refuse_untied(one.name, other.name, source)


def _converted(files: dict[str, Any], model: "PreTrainedModel", source: str) -> Iterator[StoredTensor]:
    """What the model has of what the files hold, in the model's layout; what it does not have is passed over, where
    it would not have it with more layers either."""
    weights = dict(named_weights(model, remove_duplicate=False))
    origins, unused = _origins(files, model, weights)
    refuse_surplus(unused, weights.keys(), model, source)
    for name, origin in origins.items():
        if isinstance(origin, str):
            yield _lying(name, files[origin], origin)
            continue
        with loading("model", source, "policy.path"), torch.no_grad():
            made = origin.convert(name, model=model, config=model.config)
        for converted, value in made.items():
            if converted in weights:
                yield _held(converted, value[0] if isinstance(value, list) else value)


def _lying(name: str, file: Any, stored_name: str) -> StoredTensor:
    values = file.get_slice(stored_name)
    shape = tuple(values.get_shape())
    return StoredTensor(name, shape, lambda start, stop: values[start:stop] if shape else file.get_tensor(stored_name))


def _held(name: str, value: torch.Tensor) -> StoredTensor:
    return StoredTensor(name, tuple(value.shape), lambda start, stop: value[start:stop] if value.dim() else value)


def _origins(
    files: dict[str, Any], model: "PreTrainedModel", weights: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """By the first tensor that is made: the stored tensor that it is, or the converter, with all that it takes; and the
    names that the model would have for tensors that it has no place for."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    listed = get_model_conversion_mapping(model)
    converters = [entry for entry in listed if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in listed if not isinstance(entry, WeightConverter)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    origins: dict[str, Any] = {}
    unused: list[str] = []
    for stored in sorted(files, key=dot_natural_key):  # experts are stacked in the order in which they come
        name, pattern = rename_source_key(stored, renamings, converters, prefix, weights)
        if name not in weights and stored in weights:
            name, pattern = rename_source_key(stored, [], [], prefix, weights)
        if name not in weights:
            unused.append(name)
            continue
        if pattern is None:
            origins.setdefault(name, stored)
            continue
        converter = origins.setdefault(name, copy.deepcopy(of_pattern[pattern]))
        converter.add_tensor(name, stored, pattern, _reading(files[stored], stored, weights[name].dtype))
    return origins, unused


def _reading(file: Any, name: str, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name).to(dtype)


def _open_files(settings: "PolicySettings") -> dict[str, Any]:
    """Tensor's name → the open file that holds it."""
    from safetensors import safe_open
    from transformers.utils import cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    source, revision = expanded(settings.path or ""), settings.revision
    with loading("model", source, "policy.path"):
        names = ("model.safetensors.index.json", "model.safetensors")
        index, single = (
            cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False) for name in names
        )
        if index is not None:
            paths, _ = get_checkpoint_shard_files(source, index, revision=revision)
        elif single is not None:
            paths = [single]
        else:
            refuse(f"{source} holds no *.safetensors: sharded strategies read no other format", "path")
        files = [safe_open(path, framework="pt") for path in paths]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118  it is no dict
