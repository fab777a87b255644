"""Values for a model that was built on the meta device, read or drawn one tensor at a time.

A rank reads from a safetensors file no more than the rows that it keeps.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

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


def draw(model: torch.nn.Module, seed: int, keep: Callable[[str, torch.Tensor], None]) -> None:
    """Draws the values that ``from_config`` would draw for a new model, and hands each whole tensor to ``keep``.

    Of one module at a time the tensors are in memory. transformers first builds a model's modules, which draws torch's
    own defaults, and then draws its family's for them; inner models are done with both before what follows them.

    Args:
        model: without adapters; its own parameters are left alone.
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
                if id(part) in done:
                    continue
                done.add(id(part))
                own = dict(part.named_parameters(recurse=False))
                with _whole_on_cpu(part) as whole:
                    module._init_weights(part)  # type: ignore[operator]
                for name, parameter in own.items():
                    full = ".".join(filter(None, (places[id(part)], name)))
                    if first_names.get(id(parameter)) == full:
                        keep(full, whole[name])


def _building_steps(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    from transformers import PreTrainedModel

    for child in module.children():
        yield from _building_steps(child)
    if hasattr(module, "reset_parameters"):
        yield "build", module
    if isinstance(module, PreTrainedModel):
        yield "initialise", module


def _children_first(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module


class _whole_on_cpu:  # noqa: N801  reads as a context
    """Inside, a module's own parameters are whole, unset ones in CPU memory; outside, what they were."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __enter__(self) -> dict[str, torch.Tensor]:
        self.former = {name: value for name, value in self.module._parameters.items() if value is not None}
        for name, value in self.former.items():
            self.module._parameters[name] = torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype))
        return {name: parameter.data for name, parameter in self.module.named_parameters(recurse=False)}

    def __exit__(self, *_: object) -> None:
        self.module._parameters.update(self.former)
