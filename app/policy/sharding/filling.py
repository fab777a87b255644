"""Values for a model that was built on the meta device, read or drawn one tensor at a time.

A rank reads from a safetensors file no more than the rows that it keeps.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from app.policy.checkpoints import check_trained, is_checkpoint, read_weights, seed_behind, trained_from
from app.policy.lora import base_model, base_name, first_value, is_adapter
from app.policy.sources import expanded, loading, refuse

if TYPE_CHECKING:
    from app.policy.models import PolicySettings


class StoredTensors:
    """The tensors in the safetensors files at ``settings.path``. Of a file no more is read than is asked for.

    Raises:
        ConfigurationError: there are no such files, or broken ones.
    """

    def __init__(self, settings: "PolicySettings") -> None:
        self._source = settings.path or ""
        self._files = _open_files(settings)

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the tensor called ``name``, which is of ``shape`` in the model.

        Raises:
            ConfigurationError: it is not there, or is of another shape.
        """
        if name not in self._files:
            refuse(f"the weights in {self._source} lack {name}", "path")
        values = self._files[name].get_slice(name)
        there = tuple(values.get_shape())
        if there != tuple(shape):
            refuse(f"{name} in {self._source} has the shape {there}, config.json says {tuple(shape)}", "path")
        return values[start:stop]


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


@torch.no_grad()
def fill_shards(model: Any, settings: "PolicySettings", seed: int) -> None:
    """Puts values into this rank's rows of every parameter: from files, or as they are drawn for a new model."""
    shards = dict(model.named_parameters())
    if is_checkpoint(settings.path):
        assert settings.path is not None
        fill_shards(model, trained_from(settings), seed_behind(settings.path, seed))
        trained = read_weights(settings.path)
        check_trained(trained, model, settings.path)
        for name in filter(trained.__contains__, shards):
            _fill_rows(shards[name], lambda start, stop, name=name: trained[name][start:stop])  # type: ignore[misc]
        return
    if settings.path is not None:
        stored = StoredTensors(settings)
        for name in (name for name in shards if not is_adapter(name)):
            read = functools.partial(stored.rows, base_name(name), shards[name].shape)
            _fill_rows(shards[name], read)
    else:
        names = {base_name(name): name for name in shards}
        draw(base_model(model), seed, lambda name, whole: _fill_rows(shards[names[base_name(name)]], _rows_of(whole)))
    for name in filter(is_adapter, shards):
        _fill_rows(shards[name], _rows_of(first_value(name, shards[name].shape, seed)))


def _rows_of(whole: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
    return lambda start, stop: whole[start:stop]


def _fill_rows(parameter: Any, read: Callable[[int, int], torch.Tensor]) -> None:
    """Copies rows [start, stop), as ``read`` gives them, into this rank's part of a DTensor: torch.chunk's split."""
    local, count = parameter.to_local(), parameter.shape[0]
    start = min(parameter.device_mesh.get_local_rank() * -(-count // parameter.device_mesh.size()), count)
    local.copy_(read(start, start + local.shape[0]))


@torch.no_grad()
def fill_buffers(model: Any, device: torch.device) -> None:
    """Computes the tables of rotary embeddings and the like, which no checkpoint holds."""
    base = base_model(model)
    for module in base.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
        if next(module.buffers(recurse=False), None) is not None:
            base._init_weights(module)


def draw(model: torch.nn.Module, seed: int, keep: Callable[[str, torch.Tensor], None]) -> None:
    """Draws the values that ``from_config`` would draw for a new model, and hands each whole tensor to ``keep``.

    Of one module at a time the tensors are in memory. transformers first builds a model's modules, which draws torch's
    own defaults, and then draws its family's for them; inner models are done with both before what follows them.

    Args:
        model: its own parameters are left alone, and adapters in it ignored.
        seed: of the values; the global random state is left as it was.
        keep: called with names and tensors; tied tensors come under their first name.
    """
    places = {id(module): name for name, module in model.named_modules()}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    done: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for step, module in _building_steps(model):
            if step == "build":
                with _whole_on_cpu(module):
                    module.reset_parameters()  # type: ignore[operator]
                continue
            for part in _children_first(module):
                if id(part) not in done:
                    done.add(id(part))
                    _initialise(module, part, places[id(part)], first_names, keep)


def _initialise(
    owner: torch.nn.Module,
    part: torch.nn.Module,
    place: str,
    first_names: dict[int, str],
    keep: Callable[[str, torch.Tensor], None],
) -> None:
    """Draws the own parameters of ``part``, at ``place`` in the model, as its family (``owner``) wishes."""
    own = dict(part.named_parameters(recurse=False))
    with _whole_on_cpu(part) as whole:
        owner._init_weights(part)  # type: ignore[operator]
    for name, parameter in own.items():
        full = f"{place}.{name}" if place else name
        if first_names.get(id(parameter)) == full:
            keep(full, whole[name])


def _building_steps(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    from transformers import PreTrainedModel

    for child in _own_children(module):
        yield from _building_steps(child)
    if hasattr(module, "reset_parameters"):
        yield "build", module
    if isinstance(module, PreTrainedModel):
        yield "initialise", module


def _own_children(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Without adapters, which were added later."""
    return [child for name, child in module.named_children() if not is_adapter(f".{name}")]


def _children_first(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in _own_children(module):
        yield from _children_first(child)
    yield module


@contextlib.contextmanager
def _whole_on_cpu(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, a module's own parameters are whole, unset ones in CPU memory; outside, what they were."""
    former = {name: value for name, value in module._parameters.items() if value is not None}
    fresh = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in former.items()}
    module._parameters.update({name: torch.nn.Parameter(value) for name, value in fresh.items()})
    try:
        yield {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
    finally:
        module._parameters.update(former)
