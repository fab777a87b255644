"""What belongs to a policy's weights: its parameters, and the buffers that are saved with them."""

from collections.abc import Iterator

import torch


def named_weights(model: torch.nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that ``model.state_dict()`` holds, as it lies in memory.

    Some families keep part of what they learned in persistent buffers, such as the bias by which DeepSeek-V3 chooses
    experts: a copy of the parameters alone computes something else.

    Args:
        model: sharded or not.
        remove_duplicate: tied tensors come once, under their first name.
    """
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    yield from named_buffers(model, persistent=True, remove_duplicate=remove_duplicate)


def named_buffers(
    model: torch.nn.Module, persistent: bool, remove_duplicate: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the buffers that are saved with the weights, or of those that are computed anew."""
    seen: set[int] = set()
    for place, module in model.named_modules(remove_duplicate=remove_duplicate):
        for name, buffer in module._buffers.items():
            if buffer is None or (name not in module._non_persistent_buffers_set) != persistent:
                continue
            if not remove_duplicate or id(buffer) not in seen:
                seen.add(id(buffer))
                yield (f"{place}.{name}" if place else name), buffer
