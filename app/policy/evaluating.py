"""A policy that is only evaluated for a while: eval mode, and on the device that computes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from app.policy.sharding.wrapping import device_of, is_fsdp, is_fsdp2


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def evaluation(model: Any, device: torch.device) -> Iterator[None]:
    """Eval mode inside, and a whole model that was offloaded to host memory lies on ``device``."""
    waits = isinstance(model, torch.nn.Module) and not (is_fsdp(model) or is_fsdp2(model))
    waits = waits and device_of(model) != device
    if waits:
        model.to(device)
    with evaluation_mode(model):
        try:
            yield
        finally:
            if waits:
                model.to("cpu")
