"""Weights by vLLM's own transfer to engines in processes of their own; see ``transfer_on_cpu`` for what is replaced."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch

from app.engines.faults import EngineFailure
from app.engines.vllm.engine import VLLMEngine
from app.engines.vllm.transfer import WeightTransfer
from app.engines.weight_sync import Weights
from tests.engines.vllm import transfer_on_cpu
from tests.engines.vllm.support import Owner, owner, perturb, request, worst_difference
from tests.engines.vllm.transfer_on_cpu import GlooCommunicator

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow
LEAST = 20_000
"""Bytes of the buffer: less than the embeddings take, and than all layers together."""


@pytest.fixture(autouse=True)
def _replaced_transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torch.multiprocessing import reductions
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    for place, names in {
        pynccl: ["PyNcclCommunicator"],
        packed_tensor: ["torch", "reduce_tensor"],
        reductions: ["rebuild_cuda_tensor"],
        torch.cuda: ["current_stream", "ipc_collect", "get_device_properties"],
        torch.accelerator: ["current_device_index", "synchronize"],
    }.items():
        for name in names:
            monkeypatch.setattr(place, name, getattr(place, name))  # to be put back
    transfer_on_cpu.replace_transport()
    monkeypatch.setattr("app.engines.vllm.process.SERVER", "tests.engines.vllm.transfer_on_cpu")
    monkeypatch.setattr("app.engines.vllm.transfer.IPC_BUFFER_BYTES", LEAST)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the weights that each transfer sent."""
    sent: list[list[str]] = []
    send = WeightTransfer.send

    def noted(self: WeightTransfer, weights: Weights) -> None:
        sent.append([])
        send(self, ((sent[-1].append(name) or name, tensor) for name, tensor in weights))

    monkeypatch.setattr(WeightTransfer, "send", noted)
    return sent


def started(module: Owner, backend: str, monkeypatch: pytest.MonkeyPatch, **settings: object) -> VLLMEngine:
    monkeypatch.setattr("app.engines.vllm.separate.choose_transfer", lambda *_: backend)
    engine = VLLMEngine(placement="separate", kv_cache_gib=0.25, generate_timeout_s=180, **settings)
    engine.start(module)
    return engine


def is_right(engine: VLLMEngine, module: Owner) -> bool:
    return worst_difference(module.policy, request(), engine.generate([request()])[0]) < 1e-5


def test_ipc_in_chunks_through_one_buffer(passes: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is tied to the embeddings, which are larger than the buffer would be."""
    module = owner()
    engine = started(module, "ipc", monkeypatch)
    try:
        engine.sync(module)
        assert (is_right(engine, module), passes) == (True, [])  # the first weights come as bytes
        for seed in (1, 2):
            perturb(module.policy, seed=seed)
            with monkeypatch.context() as patch:
                _be_rank_zero_of_two(patch)
                engine.sync(module)  # proves itself by fingerprints
            assert is_right(engine, module)
        names = [name for name, _ in module.policy.named_parameters(remove_duplicate=False)]
        assert passes == [names, names]
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(names)
    finally:
        engine.close()


def test_nccl_to_two_workers_until_they_die(passes: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    module = owner("llama")
    engine = started(module, "nccl", monkeypatch, tensor_parallel_size=2)
    try:
        engine.sync(module)
        for seed in (1, 2):
            perturb(module.policy, seed=seed)
            engine.sync(module)
            assert is_right(engine, module)
        monkeypatch.setattr(GlooCommunicator, "broadcast", _kill_and_wait(engine))
        with pytest.raises(EngineFailure, match=r"ended with code -9 during 'transfer'") as raised:
            engine.sync(module)
        assert (raised.value.kind, len(passes)) == ("died", 3)
        assert 0 < len(passes[2]) < len(passes[0]) == len(passes[1])
    finally:
        engine.close()


def _be_rank_zero_of_two(patch: pytest.MonkeyPatch) -> None:
    """The other rank has gathered the weights and gone on: whoever waits for it waits for ever."""

    def wait(*_: object) -> None:
        raise AssertionError("waits for the other rank")

    patch.setattr(torch.distributed, "is_initialized", lambda: True)
    patch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    for collective in ("all_gather_object", "barrier", "broadcast_object_list"):
        patch.setattr(torch.distributed, collective, wait)


def _kill_and_wait(engine: VLLMEngine) -> object:
    """A broadcast whose receiver dies: as on a GPU, nothing but the communicator's end ends it."""
    pid = engine._backend.processes[0].process.pid

    def broadcast(self: GlooCommunicator, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        if self.disabled:
            return
        os.killpg(pid, signal.SIGKILL)
        ended = threading.Event()
        destroy = self.destroy
        self.destroy = lambda: (destroy(), ended.set())
        assert ended.wait(60), "nobody ended the broadcast"

    return broadcast
