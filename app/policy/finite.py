"""Whether a policy's numbers are finite, and which tensor is the first that holds others.

A single NaN or infinite weight makes every log-probability NaN, and a checkpoint of it is worth nothing. Whoever is
about to train on, sample from, save or export a policy asks here.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from app.policy.sharding.wrapping import unwrapped

Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class NotFinite:
    """Tensors that hold NaN or infinite values.

    Attributes:
        names: theirs, as Hugging Face names them, in the model's order; never empty.
        total: how many tensors the model has.
    """

    names: tuple[str, ...]
    total: int

    def __str__(self) -> str:
        more = len(self.names) - 1
        rest = f", and {more} more of its {self.total} tensors do" if more else ""
        return f"{self.names[0]} holds values that are not finite{rest}"


def weights_not_finite(policy: nn.Module, gather: Gather) -> NotFinite | None:
    """The policy's parameters that hold NaN or infinite values on any rank; None where all are finite.

    Reads each weight once, which costs less than a forward pass, and waits for the device once. Collective where
    ``gather`` is; a sharded policy is looked at where its shards lie, nothing is gathered but the names.

    Args:
        policy: sharded or not, with or without adapters.
        gather: takes this rank's value and returns those of all ranks: ``module.gather_objects``.
    """
    return _not_finite(list(policy.named_parameters()), gather)


def gradients_not_finite(policy: nn.Module, gather: Gather) -> NotFinite | None:
    """The same of the gradients, as they were accumulated."""
    named = [(name, parameter.grad) for name, parameter in policy.named_parameters() if parameter.grad is not None]
    return _not_finite(named, gather)


@torch.no_grad()
def _not_finite(tensors: Sequence[tuple[str, Tensor]], gather: Gather) -> NotFinite | None:
    named = [(unwrapped(name), _local(tensor)) for name, tensor in tensors]
    ends = [end for _, part in named for end in _extremes(part)]
    finite = torch.stack(ends).isfinite().view(-1, 2).all(1).tolist() if ends else []
    here = {name for (name, _), fine in zip(named, finite, strict=True) if not fine}
    anywhere = set().union(*gather(here))
    names = tuple(name for name, _ in named if name in anywhere)
    return NotFinite(names, len(named)) if names else None


@contextlib.contextmanager
def watched_modules(model: nn.Module) -> Iterator[list[str]]:
    """Yields a list that, after a forward pass inside, holds the modules whose output was not finite, in the order in
    which they ended: the first one is where NaN or infinity came from. Waits for the device at each module."""
    found: list[str] = []

    def look(name: str, module: nn.Module, given: Any, made: Any) -> None:
        parts = made if isinstance(made, tuple | list) else made.values() if isinstance(made, dict) else (made,)
        tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
        if not all(part.isfinite().all() for part in tensors):
            found.append(unwrapped(name))

    hooks = [each.register_forward_hook(partial(look, name)) for name, each in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of ``values``, as float32 scalars: both NaN where one value is."""
    lowest, highest = values.aminmax() if values.numel() else (values.new_zeros(()),) * 2
    return lowest.float(), highest.float()


def _local(parameter: Tensor) -> Tensor:
    """What lies on this rank."""
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
