"""FullyShardedDataParallel without a GPU, which Lightning refuses by its strategy's type alone.

Of what then runs, one step is of GPUs: a full checkpoint is gathered on the device and copied to the host layer by
layer. On a CPU nothing is copied, and torch frees or overwrites what it has just handed out: a crash for weights, and
for optimiser states one running mean with the values of another. With ``cpu_offload`` host memory is pinned and copies
to it are waited for, which takes a GPU, and gradients in it are told by their device. Nothing else differs from
Lightning's strategy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, fsdp
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
)
from torch.distributed.fsdp._flat_param import FlatParamHandle


@contextmanager
def _gathered_in_place(module: torch.nn.Module, world_size: int, rank0_only: bool = True) -> Iterator[None]:
    configs = (
        kind(offload_to_cpu=False, rank0_only=rank0_only) for kind in (FullStateDictConfig, FullOptimStateDictConfig)
    )
    with FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, *configs):
        yield


_prepare = FlatParamHandle.prepare_gradient_for_backward


def _prepared_as_on_a_gpu(self: FlatParamHandle) -> None:
    """FSDP adds nothing to a gradient in host memory: the next one is written over it."""
    parameter = self.flat_param
    if self._offload_params and parameter.grad is not None and parameter.grad.size() == parameter._local_shard.size():
        parameter.grad = None
    _prepare(self)


class FSDPOnCPU(FSDPStrategy):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        fsdp._get_full_state_dict_context = _gathered_in_place
        if settings.get("cpu_offload"):
            torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
            torch.cpu.Stream.synchronize = lambda self: None  # type: ignore[attr-defined]
            FlatParamHandle.prepare_gradient_for_backward = _prepared_as_on_a_gpu  # type: ignore[method-assign]
