"""Mixed precision of one model, whoever calls it."""

from typing import Any

import torch


class Autocast:
    """Runs a model's forward pass in bfloat16 where torch.autocast thinks it safe, whoever calls the model."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._open: list[torch.autocast] = []

    def attach(self, model: torch.nn.Module) -> None:
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._exit, always_call=True)

    def _enter(self, *_: Any) -> None:
        context = torch.autocast(self._device_type, dtype=torch.bfloat16, cache_enabled=False)
        context.__enter__()
        self._open.append(context)

    def _exit(self, *_: Any) -> None:
        self._open.pop().__exit__(None, None, None)
