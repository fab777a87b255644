"""vLLM engines in processes of their own: replicas that share the requests, driven by the trainer's rank 0."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch

from app.engines.engine import Completion, GenerationRequest
from app.engines.faults import EngineFailure
from app.engines.vllm.local import LocalEngineSettings
from app.engines.vllm.process import EngineProcess
from app.engines.vllm.settings import DTYPES, VLLMSettings
from app.engines.vllm.transfer import WeightTransfer, choose_transfer
from app.engines.weight_sync import Weights, sum_of_shards

CHUNK_BYTES = 64 << 20
T = TypeVar("T")


class SeparateEngines:
    """``data_parallel_size`` engine processes.

    Weights travel as safetensors bytes at the first sync, which also tells their names and shapes; later ones go over
    vLLM's own transfer where trainer and engine both have GPUs.

    Args:
        settings: of the engine.
        local: what each process builds its engine from.
        device: the trainer's.
    """

    def __init__(self, settings: VLLMSettings, local: LocalEngineSettings, device: torch.device) -> None:
        self.settings = settings
        self.local = local
        self.device = device
        self.dtype = DTYPES[local.dtype]
        self.max_model_len = 0
        self.processes: list[EngineProcess] = []
        self._transfers: list[str | None] = []
        self._open: list[WeightTransfer] = []
        self._shapes: dict[str, tuple[int, ...]] = {}

    def start(self, folder: Path) -> None:
        """Starts (or reaches) every engine at once and has each build its model from the files in ``folder``."""
        settings = self.settings
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # an engine on this card takes its share of what other processes leave
        for replica in range(settings.data_parallel_size):
            devices = _devices(replica, settings)
            self.processes.append(
                EngineProcess(settings.address, settings.start_timeout_s, settings.generate_timeout_s, devices)
            )
        files = {path.name: path.read_bytes().decode("latin-1") for path in folder.iterdir()}
        loaded = self._on_each(lambda process, _: self._build(process, files))
        self.max_model_len = min(length for length, _ in loaded)
        self._transfers = [transfer for _, transfer in loaded]

    def _build(self, process: EngineProcess, files: dict[str, str]) -> tuple[int, str | None]:
        process.connect()
        transfer = choose_transfer(process, self.device, self.settings.tensor_parallel_size)
        header = {"op": "load", "files": files, "settings": asdict(replace(self.local, transfer=transfer))}
        return process.ask(header, timeout_s=process.start_timeout_s)["max_model_len"], transfer

    def load(self, weights: Weights) -> None:
        """Hands over all weights and empties the prefix caches."""
        if self._shapes and all(self._transfers):  # an offloaded policy's weights lie in host memory
            self._load_by_transfer((name, tensor.to(self.device, self.dtype)) for name, tensor in weights)
        else:
            self._load_as_bytes((name, tensor.to(self.dtype)) for name, tensor in weights)
        for process in self.processes:
            process.ask({"op": "forget"})

    def adapt(self, rank: int, data: bytes) -> None:
        """Hands over adapters, see :meth:`LocalEngine.adapt`, and empties the prefix caches."""
        for process in self.processes:
            process.ask({"op": "adapt", "rank": rank}, data)
            process.ask({"op": "forget"})

    def _load_as_bytes(self, weights: Weights) -> None:
        for process in self.processes:
            process.call("policy_begin")
        for chunk in _chunks(weights, self._shapes):
            for process in self.processes:
                process.call("policy_receive", payload=chunk)
        for process in self.processes:
            process.call("policy_finish")

    def _load_by_transfer(self, weights: Weights) -> None:
        try:
            self._transfer(weights)
        except EngineFailure:
            raise
        except RuntimeError as error:  # NCCL's, CUDA's, and those of their rendezvous
            raise EngineFailure("died", f"the weights did not reach the engine: {error}") from error

    def _transfer(self, weights: Weights) -> None:
        if not self._open:
            for process, backend in zip(self.processes, self._transfers, strict=True):
                assert backend is not None
                transfer = WeightTransfer(
                    process, backend, self.settings.tensor_parallel_size, self._shapes, self.dtype
                )
                self._open.append(transfer)
        held = list(weights) if len(self._open) > 1 else weights  # each engine is sent a pass of its own
        for transfer in self._open:
            transfer.send(iter(held))

    @property
    def needs_weights(self) -> bool:
        """Never: these engines do not sleep."""
        return False

    def fingerprints(self, widths: dict[str, int], round_number: int) -> list[dict[str, int]]:
        """What each replica holds, by name."""
        return [sum_of_shards(process.call("policy_fingerprints", widths, round_number)) for process in self.processes]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Every replica takes each ``data_parallel_size``-th request."""
        count = len(self.processes)
        shares = [requests[replica::count] for replica in range(count)]
        answers = self._on_each(lambda process, replica: process.generate(shares[replica]))
        return [answers[index % count][index // count] for index in range(len(requests))]

    def _on_each(self, action: Callable[[EngineProcess, int], T]) -> list[T]:
        """``action(process, replica)`` on every engine at once; what ends one of them, Ctrl-C too, ends the wait."""
        if len(self.processes) == 1:
            return [action(self.processes[0], 0)]
        with ThreadPoolExecutor(len(self.processes)) as pool:
            try:
                return list(pool.map(action, self.processes, range(len(self.processes))))
            except BaseException:
                for process in self.processes:
                    process.hang_up()
                raise

    def close(self) -> None:
        """Ends the processes that are ours."""
        for process in self.processes:
            process.close()
        self.processes.clear()
        for transfer in self._open:
            transfer.close()
        self._open.clear()


def _devices(replica: int, settings: VLLMSettings) -> list[int] | None:
    """The GPUs of one replica; None leaves it all that the trainer sees."""
    size = settings.tensor_parallel_size
    devices = settings.devices
    if devices is None and settings.data_parallel_size > 1 and torch.cuda.is_available():
        devices = tuple(range(size * settings.data_parallel_size))
    return None if devices is None else list(devices[replica * size : (replica + 1) * size])


def _chunks(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> Iterator[bytes]:
    """Safetensors bytes of about ``CHUNK_BYTES`` each; notes every weight's shape in ``shapes``."""
    from safetensors.torch import save

    waiting: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in weights:
        shapes[name] = tuple(tensor.shape)
        # a copy: tied tensors share memory, which safetensors refuses
        waiting[name] = tensor.to("cpu", copy=True).contiguous()
        size += waiting[name].nbytes
        if size >= CHUNK_BYTES:
            yield save(waiting)
            waiting, size = {}, 0
    if waiting:
        yield save(waiting)
