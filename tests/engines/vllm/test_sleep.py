"""A colocated engine on a device of its own choosing that sleeps, fails and is restarted; only the worker's two calls
that need CUDA are replaced: weights asleep are not numbers, and level 2 does not bring them back."""

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.vllm.engine import VLLMEngine
from app.engines.vllm.worker import PolicyWeights
from tests.engines.vllm.support import Owner, owner, perturb, request, worst_difference

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow


class SleepingWorker:
    """vLLM's sleep as a GPU worker does it, in host memory; notes the order of what the worker is asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from vllm.v1.worker.cpu_worker import CPUWorker

        self.calls: list[str] = []
        self.awake = {"weights", "kv_cache"}
        self.kept: dict[str, torch.Tensor] = {}
        for name, method in {"sleep": self._sleep, "wake_up": self._wake_up}.items():
            patch.setattr(CPUWorker, name, lambda worker, *args, _do=method, **kwargs: _do(worker, *args, **kwargs))
        watched = {"reload_weights": CPUWorker, "policy_fingerprints": PolicyWeights, "execute_model": CPUWorker}
        for name, cls in watched.items():
            patch.setattr(cls, name, self._noted(name, getattr(cls, name)))

    def _noted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(worker: Any, *args: Any, **kwargs: Any) -> Any:
            needed = {"weights"} if name == "reload_weights" else {"weights", "kv_cache"}
            assert needed <= self.awake, f"{name} while {needed - self.awake} sleeps"
            if not self.calls or self.calls[-1] != name:
                self.calls.append(name)
            return real(worker, *args, **kwargs)

        return noted

    @torch.no_grad()
    def _sleep(self, worker: Any, level: int) -> None:
        self.calls.append(f"sleep {level}")
        assert self.awake == {"weights", "kv_cache"}
        self.awake = set()
        held = dict(worker.model_runner.get_model().named_parameters())
        self.kept = {name: tensor.clone() for name, tensor in held.items()} if level == 1 else {}
        for tensor in [*held.values(), *worker.model_runner.kv_caches]:
            tensor.fill_(torch.nan)

    @torch.no_grad()
    def _wake_up(self, worker: Any, tags: list[str] | None) -> None:
        self.calls.append(f"wake {'+'.join(tags) if tags else 'all'}")
        self.awake |= set(tags or ("weights", "kv_cache"))
        for name, tensor in worker.model_runner.get_model().named_parameters():
            if name in self.kept and "weights" in self.awake:
                tensor.copy_(self.kept[name])


@contextlib.contextmanager
def started(module: Owner, level: int) -> Iterator[VLLMEngine]:
    """An engine that believes that it can sleep, started and given weights as in a validation."""
    engine = VLLMEngine(kv_cache_gib=0.25, sleep_level=level)
    with torch.inference_mode():
        engine.start(module)
        engine.sync(module)
    engine._backend.engine.can_sleep = True
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def module() -> Owner:
    """On the second device: vLLM's worker has to take it, too, in a process that no launcher started."""
    return Owner(**vars(owner()) | {"device": torch.device("cpu", 1)})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> SleepingWorker:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    worker = SleepingWorker(monkeypatch)
    monkeypatch.setattr("app.engines.vllm.local.release_cached_memory", lambda: worker.calls.append("release"))
    return worker


def test_level_2_on_the_second_device(worker: SleepingWorker, module: Owner) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with started(module, 2) as engine:
            local_rank = engine._backend.engine.call("policy_fingerprints", {}, 0), _worker_of(engine).local_rank
            assert local_rank == ([{}], 1)
            worker.calls.clear()
            engine.sync(module)
            for _ in range(2):  # the second round of generation asks for the weights itself
                answer = engine.generate([request()])[0]
                assert worst_difference(module.policy, request(), answer) < 1e-5
            perturb(module.policy)
            engine.sync(module)
            assert worst_difference(module.policy, request(), engine.generate([request()])[0]) < 1e-5
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    taken = ["reload_weights", "policy_fingerprints", "execute_model", "sleep 2"]
    again = ["release", "wake weights", "reload_weights", "release", "wake kv_cache", *taken[1:]]
    assert worker.calls == [*taken, *again, *again, "release", "wake all", "release"]


def test_level_1_and_failures(worker: SleepingWorker, module: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed engine's weights are gone before the next one is built, though the failure is still at hand."""
    with started(module, 1) as engine:
        guarded = GuardedEngine(engine)
        guarded.sync(module)
        for _ in range(2):
            answer = engine.generate([request()])[0]
            assert worst_difference(module.policy, request(), answer) < 1e-5
        assert worker.calls[-4:] == ["release", "wake all", "execute_model", "sleep 1"]
        with monkeypatch.context() as asleep:
            asleep.setattr(engine._backend.engine, "wake", _no_room)
            with pytest.raises(EngineFailure, match="take over the weights: RuntimeError: no room to wake up in"):
                engine.sync(module)  # any other error would leave other ranks waiting
        failed = weakref.ref(next(_worker_of(engine).model_runner.get_model().parameters()))
        seen_at_start: list[bool] = []
        start = engine.start
        engine.start = lambda owner: (gc.collect(), seen_at_start.append(failed() is None), start(owner))
        _fail_once(_worker_of(engine).model_runner)
        assert worst_difference(module.policy, request(), guarded.generate([request()])[0]) < 1e-5
        assert (guarded.restarts, seen_at_start) == (1, [True])


def _no_room(what: str | None = None) -> None:
    raise RuntimeError("no room to wake up in")


def _worker_of(engine: VLLMEngine) -> Any:
    return engine._backend.engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def _fail_once(runner: Any) -> None:
    def run_out_of_memory(*args: Any, **kwargs: Any) -> None:
        held = list(runner.get_model().parameters())  # as an activation would be
        raise RuntimeError(f"out of memory, for a test, with {len(held)} tensors")

    runner.execute_model = run_out_of_memory
