"""Weights from GPU to GPU by vLLM's own weight transfer: CUDA IPC on one card, NCCL between cards.

Rank 0 of the trainer sends, after it has gathered each weight with the others. Written against vLLM 0.32's interface
(``vllm.distributed.weight_transfer``), whose own code runs in the tests with NCCL and CUDA's memory handles replaced:
no machine with a GPU was at hand. A run checks every sync by fingerprints, whichever way the weights came.
"""

import base64
import math
import pickle
import socket
import threading
from collections.abc import Callable
from typing import Any

import torch

from app.engines.vllm.process import EngineProcess
from app.engines.weight_sync import Weights

IPC_BUFFER_BYTES = 256 << 20
"""Device memory that the trainer shares with an engine on its card; more where one weight is larger."""


def choose_transfer(process: EngineProcess, device: torch.device, workers: int) -> str | None:
    """ "ipc", "nccl", or None where weights have to travel as bytes.

    NCCL refuses two processes on one card; IPC needs the engine's one card to be the trainer's.
    """
    if device.type != "cuda":
        return None
    mine = str(torch.cuda.get_device_properties(device).uuid)
    theirs = process.ask({"op": "hello"}, timeout_s=process.start_timeout_s)["gpus"][:workers]
    if mine not in theirs:
        return "nccl" if theirs else None
    return "ipc" if theirs == [mine] and process.process is not None else None


class WeightTransfer:
    """The trainer's end of one engine's weight transfer.

    Args:
        process: the engine, already loaded with this backend.
        backend: "ipc" or "nccl".
        workers: the engine's tensor-parallel size.
        shapes: of all weights by name, in the order in which they will be sent.
        dtype: of all weights.
    """

    def __init__(
        self,
        process: EngineProcess,
        backend: str,
        workers: int,
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        self._source = _replayed_source(shapes, dtype)
        self._failure: BaseException | None = None
        self._leaving = threading.Lock()
        client = _Client(process, self._receiver_failed)
        sender, information = _ipc(shapes, dtype) if backend == "ipc" else _nccl(process, workers)
        self._engine = sender.trainer_init(information, client=client, source=self._source)

    def send(self, weights: Weights) -> None:
        """Sends one pass over all weights.

        Raises:
            EngineFailure: of the engine that should receive them.
        """
        self._source.weights = self._while_received(weights)
        self._engine.send_weights()

    def _while_received(self, weights: Weights) -> Weights:
        for pair in weights:
            if self._failure is not None:
                raise self._failure
            yield pair

    def _receiver_failed(self, failure: BaseException) -> None:
        self._failure = failure
        self._leave()

    def _leave(self) -> None:
        """Ends the process group, once. Broadcasts on the device to an engine that failed would never end by
        themselves; vLLM aborts them."""
        with self._leaving:
            group = getattr(self._engine, "model_update_group", None)
            if group is not None:
                group.destroy()

    def close(self) -> None:
        """Leaves the process group, where there is one."""
        self._leave()
        self._engine.shutdown()


def _nccl(process: EngineProcess, workers: int) -> tuple[Any, Any]:
    """vLLM's sender and what it starts from.

    Each weight is a broadcast of its own on the trainer's stream, where it waits for what computes the weight. vLLM
    would pack them on streams of its own, which wait for nothing.
    """
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
    from vllm.utils.network_utils import get_open_port

    information = NCCLTrainerInitInfo(
        master_address=_address_towards(process),
        master_port=get_open_port(),
        world_size=1 + workers,
        packed=False,
        rank=0,
    )
    return NCCLTrainerWeightTransferEngine, information


def _address_towards(process: EngineProcess) -> str:
    """This machine's address as the engine's sees it; vLLM's own guess asks the internet."""
    connection = process.connection
    assert connection is not None, "connect comes first"
    return "127.0.0.1" if connection.family == socket.AF_UNIX else connection.getsockname()[0]


def _ipc(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[Any, Any]:
    """vLLM's sender and what it starts from. A weight must fit into the buffer."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine

    class LoneSender(IPCTrainerWeightTransferEngine):
        """vLLM's sender collects handles of all of the trainer's ranks, which rank 0 alone would wait for for ever."""

        def _all_gather_and_merge_handles(self, handles: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return handles

        @staticmethod
        def _post_send_sync() -> None:
            torch.cuda.ipc_collect()

    largest = max(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    size = max(IPC_BUFFER_BYTES, largest)
    return LoneSender, IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)


def _replayed_source(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class ReplayedSource(WeightSource):
        """vLLM's view of ``weights``, set anew before each sending."""

        def __init__(self) -> None:
            self.weights: Weights = iter(())

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, dtype, shape) for name, shape in shapes.items()]

        def __iter__(self) -> Weights:
            return self.weights

    return ReplayedSource()


class _Client:
    """What vLLM's trainer side calls on the engine (its protocol ``VLLMWeightSyncClient``).

    Args:
        process: the engine.
        failed: called where the engine cannot receive, from the thread in which vLLM waits for its answer.
    """

    def __init__(self, process: EngineProcess, failed: Callable[[BaseException], None]) -> None:
        self._process = process
        self._failed = failed

    def _call(self, method: str, **kwargs: Any) -> None:
        self._process.ask({"op": "transfer", "method": method, "kwargs": kwargs})

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self._call("update_weights", update_info=_as_json(update_info))
        except BaseException as failure:
            self._failed(failure)
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")


def _as_json(update_info: dict[str, Any]) -> dict[str, Any]:
    """CUDA IPC handles are not JSON: vLLM takes them pickled, where its environment allows that."""
    handles = update_info.get("ipc_handles")
    if handles is None:
        return {name: value for name, value in update_info.items() if value is not None}
    rest = {name: value for name, value in update_info.items() if name != "ipc_handles" and value is not None}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
