"""Weights from GPU to GPU by vLLM's own weight transfer: CUDA IPC on one card, NCCL between cards.

Written against vLLM 0.32's interface (``vllm.distributed.weight_transfer``). Untested: no machine with a GPU was at
hand. A run checks every sync by fingerprints, whichever way the weights came.
"""

import base64
import pickle
from typing import Any

import torch

from app.rollout.vllm_process import EngineProcess
from app.rollout.weight_sync import Weights


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
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self._source = _replayed_source(shapes, dtype)
        information = _trainer_information(backend, workers)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            information, client=_Client(process), source=self._source
        )

    def send(self, weights: Weights) -> None:
        """Sends one pass over all weights."""
        self._source.weights = weights
        self._engine.send_weights()

    def close(self) -> None:
        """Leaves the process group, where there is one."""
        self._engine.shutdown()


def _trainer_information(backend: str, workers: int) -> Any:
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=0, packed=True)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip, get_open_port

    return NCCLTrainerInitInfo(master_address=get_ip(), master_port=get_open_port(), world_size=1 + workers, rank=0)


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
    """What vLLM's trainer side calls on the engine (its protocol ``VLLMWeightSyncClient``)."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process

    def _call(self, method: str, **kwargs: Any) -> None:
        self._process.ask({"op": "transfer", "method": method, "kwargs": kwargs})

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call("update_weights", update_info=_as_json(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")


def _as_json(update_info: dict[str, Any]) -> dict[str, Any]:
    """CUDA IPC handles are not JSON: vLLM takes them pickled, where its environment allows that."""
    handles = update_info.get("ipc_handles")
    if handles is None:
        return {name: value for name, value in update_info.items() if value is not None}
    rest = {name: value for name, value in update_info.items() if name != "ipc_handles" and value is not None}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
