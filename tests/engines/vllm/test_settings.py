"""What is refused before anything slow starts, and the guard around an engine."""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.engine import Completion, GenerationRequest, PolicyOwner
from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.vllm.colocated import Colocated
from app.engines.vllm.engine import VLLMEngine
from app.engines.vllm.separate import _devices
from app.engines.vllm.settings import VLLMSettings
from app.engines.weight_sync import WeightSyncError
from app.errors import ConfigurationError
from tests.engines.vllm.support import owner, request


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "elsewhere"}, r"engine\.placement: must be colocated or separate"),
        ({"dtype": "float8"}, r"engine\.dtype: must be policy or one of float32"),
        ({"gpu_memory_share": 0.0}, r"engine\.gpu_memory_share: must lie in"),
        ({"kv_cache_gib": 0.0}, r"engine\.kv_cache_gib: must be positive"),
        ({"sleep_level": 3}, r"engine\.sleep_level: must be 0"),
        ({"max_model_len": 1}, r"engine\.max_model_len: must be at least 2"),
        ({"max_sequences": 0}, r"engine\.max_sequences: must be at least 1"),
        ({"generate_timeout_s": 0.0}, r"engine\.generate_timeout_s: must be positive"),
        ({"address": "host:1"}, r"engine\.address: needs placement: separate"),
        ({"tensor_parallel_size": 2}, r"engine\.tensor_parallel_size: must be 1 when colocated"),
        ({"data_parallel_size": 2}, r"engine\.data_parallel_size: must be 1 when colocated"),
        ({"devices": [0]}, r"engine\.devices: needs placement: separate"),
        ({"placement": "separate", "devices": [0]} | {"tensor_parallel_size": 2}, r"engine\.devices: needs .* = 2"),
        ({"placement": "separate", "address": "host"}, r"engine\.address: must be host:port"),
        ({"placement": "separate", "address": "h:1", "data_parallel_size": 2}, "one address is one engine"),
        ({"placement": "separate", "address": "h:1", "devices": [0]}, r"engine\.devices: an engine given by"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VLLMEngine(**settings)


def test_without_vllm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigurationError, match=r"^engine: vLLM is not installed: run `make setup-vllm`$"):
        VLLMEngine()
    VLLMEngine(placement="separate", address="elsewhere:1")


def test_before_the_start_and_after_the_end() -> None:
    engine = VLLMEngine(placement="separate", address="elsewhere:1")
    engine.close()
    with pytest.raises(RuntimeError, match="not started"):
        engine.sync(owner())


def test_replicas_get_their_own_gpus() -> None:
    settings = VLLMSettings(placement="separate", tensor_parallel_size=2, data_parallel_size=2, devices=(4, 5, 6, 7))
    assert [_devices(replica, settings) for replica in range(2)] == [[4, 5], [6, 7]]
    assert _devices(0, VLLMSettings(placement="separate")) is None


@pytest.mark.parametrize("error", [EngineFailure("hung", "why"), WeightSyncError(["a"], ["b"])])
def test_errors_reach_other_ranks_whole(error: Exception) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))


class RecordingVLLM:
    """Stands in for vLLM on a platform that can sleep; notes what is asked of it."""

    can_sleep = True
    max_model_len = 16

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> list[list[Completion]]:
            shown = [str(argument) for argument in arguments if isinstance(argument, int | str)]
            self.calls.append(" ".join([name, *shown]))
            return []

        return note


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_between_rollouts(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    calls: list[str] = []
    monkeypatch.setattr("app.engines.vllm.colocated.LocalEngine", lambda folder, local: RecordingVLLM(calls))
    backend = Colocated(None, level)
    backend.start(Path())
    backend.load(iter(()))
    backend.generate([])
    assert calls == ["reload", "forget_prefixes", "generate", f"sleep {level}"]
    assert backend.needs_weights == (level == 2)
    calls.clear()
    backend.load(iter(()))
    assert calls == ["wake weights", "reload", "wake kv_cache", "forget_prefixes"]
    calls.clear()
    backend.generate([])
    if level == 1:
        backend.generate([])
        assert calls == ["generate", "sleep 1", "wake", "generate", "sleep 1"]


class FailingEngine:
    """Fails the given number of times, then answers with the requests' seeds; notes the calls."""

    def __init__(self, sync_failures: int = 0, generate_failures: int = 0, start_failures: int = 0) -> None:
        self.left = {"sync": sync_failures, "generate": generate_failures, "start": start_failures}
        self.calls: list[str] = []

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.left[name] > 0 and not (name == "start" and len(self.calls) == 1):
            self.left[name] -= 1
            raise EngineFailure("died" if name != "start" else "start", f"{name} failed")

    def start(self, module: PolicyOwner) -> None:
        self._step("start")

    def sync(self, module: PolicyOwner) -> None:
        self._step("sync")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        self._step("generate")
        return [[Completion([one.seed], [0.0])] for one in requests]

    def close(self) -> None:
        self.calls.append("close")


def test_a_failed_rollout_is_made_again_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = FailingEngine(generate_failures=1)
    guarded = GuardedEngine(engine)
    guarded.start(owner())
    guarded.sync(owner())
    assert guarded.generate([request(seed=5)]) == [[Completion([5], [0.0])]]
    assert engine.calls == ["start", "sync", "generate", "close", "start", "sync", "generate"]
    assert guarded.restarts == 1
    assert "(died): generate failed" in caplog.text
    guarded.generate([request()])
    assert guarded.restarts == 1


def test_a_failed_sync_restarts() -> None:
    engine = FailingEngine(sync_failures=1)
    guarded = GuardedEngine(engine)
    guarded.start(owner())
    guarded.sync(owner())
    assert engine.calls == ["start", "sync", "close", "start", "sync"]


@pytest.mark.parametrize(
    ("failures", "kind"),
    [({"generate_failures": 2}, "died"), ({"generate_failures": 1, "start_failures": 1}, "start")],
)
def test_a_second_failure_is_final(failures: dict[str, int], kind: str) -> None:
    guarded = GuardedEngine(FailingEngine(**failures))
    guarded.start(owner())
    guarded.sync(owner())
    with pytest.raises(EngineFailure, match=r"failed again after a restart: .*first failure: generate") as raised:
        guarded.generate([request()])
    assert raised.value.kind == kind


def test_dtype_policy_is_the_policys() -> None:
    assert VLLMSettings().engine_dtype(torch.bfloat16) == torch.bfloat16
    assert VLLMSettings(dtype="float32").engine_dtype(torch.bfloat16) == torch.float32
