"""vLLM's weight transfer without a GPU, in the trainer's process and (run as a program) in an engine server's.

Only what carries the bytes is another: gloo for NCCL, a file in shared memory for a CUDA memory handle. The handshake,
threads, chunks, messages and reloading are vLLM's and this project's own.
"""

import mmap
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

UUID = "GPU-for-tests"


class GlooCommunicator:
    """What vLLM's transfer uses of its PyNcclCommunicator: it blocks until the bytes are there, as NCCL's stream does,
    and while it does only ``destroy`` ends it."""

    def __init__(self, group: Any, device: Any) -> None:
        store = torch.distributed.PrefixStore("weights", group.store)
        self.available, self.disabled, self.rank = True, False, group.rank
        self._group = torch.distributed.ProcessGroupGloo(store, group.rank, group.world_size, timedelta(seconds=60))

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        if self.disabled:
            return
        assert tensor.device.type == "cpu"
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor.contiguous().view(-1).view(torch.uint8)], options).wait()

    def destroy(self) -> None:
        self.available, self.disabled = False, True


class _Torch:
    """torch for the module that packs weights: "cuda" memory is a shared file."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, size: int, dtype: torch.dtype, device: Any) -> torch.Tensor:
        handle, path = tempfile.mkstemp(dir="/dev/shm")
        os.truncate(handle, size)
        os.close(handle)
        shared = mapped(path)
        shared.path = Path(path)  # type: ignore[attr-defined]
        return shared


def mapped(path: str) -> torch.Tensor:
    """The file's bytes, shared with whoever maps it."""
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)


def _export(tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """As ``reduce_tensor``: arguments for :func:`_import`, the seventh of which is the device's number."""
    return None, (torch.Tensor, tensor.size(), torch.UntypedStorage, torch.uint8, str(tensor.path), b"handle", 7)  # type: ignore[attr-defined]


def _import(*arguments: Any) -> torch.Tensor:
    assert arguments[6] in (0, None), "the receiver's own device takes the place of the sender's"
    return mapped(arguments[4])


def replace_transport() -> None:
    """Patches vLLM and torch for the rest of the process; a test that calls it undoes that."""
    from torch.multiprocessing import reductions
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    pynccl.PyNcclCommunicator = GlooCommunicator
    packed_tensor.torch, packed_tensor.reduce_tensor = _Torch(), _export
    reductions.rebuild_cuda_tensor = _import
    stream = SimpleNamespace(synchronize=lambda: None)
    torch.cuda.current_stream = lambda *_: stream
    torch.cuda.ipc_collect = lambda: None
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(uuid=UUID)
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda *_: None


if __name__ in ("__main__", "__mp_main__"):  # the server, and the workers that it spawns
    replace_transport()

if __name__ == "__main__":
    from app.engines.vllm.server import main

    main()
