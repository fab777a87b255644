"""The real vLLM engine in processes of its own: the same rollouts, and what happens when it fails."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.vllm.engine import VLLMEngine
from app.engines.weight_sync import WeightSyncError
from app.errors import ConfigurationError
from app.policy.lora import LoraSettings, add_adapters
from tests.engines.vllm.support import Owner, owner, perturb, request, worst_difference

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow
LONG = {"n": 24, "max_new_tokens": 480, "end": ()}


@pytest.fixture(scope="module")
def module() -> Owner:
    return owner("llama")


@pytest.fixture(scope="module")
def shared(module: Owner) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(placement="separate", kv_cache_gib=0.25, generate_timeout_s=60)
    engine.start(module)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: VLLMEngine, module: Owner) -> VLLMEngine:
    """Started, with the policy's weights; again, where a test has ended it."""
    if shared._backend is None:
        shared.start(module)
    shared.sync(module)
    return shared


def group_of(engine: VLLMEngine) -> list[int]:
    """All processes of the engine."""
    leader = engine._backend.processes[0].process.pid
    return [leader, *(child.pid for child in psutil.Process(leader).children(recursive=True))]


@contextlib.contextmanager
def shortly_after(signal_number: int, pid: int, seconds: float = 0.5) -> Iterator[None]:
    """Sends a signal while the block runs."""
    timer = threading.Timer(seconds, os.kill, (pid, signal_number))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_untied_model_log_probs_and_new_weights(engine: VLLMEngine, module: Owner) -> None:
    asked = [request(n=3), request((8, 9), n=2, temperature=0.7, top_p=0.8)]
    before = engine.generate(asked)
    assert all(worst_difference(module.policy, one, rows) < 1e-5 for one, rows in zip(asked, before, strict=True))
    perturb(module.policy)
    engine.sync(module)
    after = engine.generate(asked)
    assert all(worst_difference(module.policy, one, rows) < 1e-5 for one, rows in zip(asked, after, strict=True))
    assert after != before


def test_weights_in_several_messages(engine: VLLMEngine, module: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.vllm.separate.CHUNK_BYTES", 1000)
    perturb(module.policy, seed=2)
    engine.sync(module)
    assert worst_difference(module.policy, request(), engine.generate([request()])[0]) < 1e-5


def test_lost_weights_are_named(engine: VLLMEngine, module: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(weights: Iterator[tuple[str, object]]) -> None:
        list(weights)

    perturb(module.policy, seed=3)
    monkeypatch.setattr(engine._backend, "load", load)
    with pytest.raises(WeightSyncError, match=r"model\.embed_tokens\.weight.* and \d+ more"):
        engine.sync(module)


def test_the_same_samples_as_in_process(engine: VLLMEngine, module: Owner) -> None:
    asked = [request(n=4), request((8, 9), n=2)]
    inside = VLLMEngine(kv_cache_gib=0.25)
    inside.start(module)
    try:
        inside.sync(module)
        ids = [[row.token_ids for row in group] for group in inside.generate(asked)]
    finally:
        inside.close()
    assert [[row.token_ids for row in group] for group in engine.generate(asked)] == ids


def test_two_replicas_share_requests_and_give_the_same_samples(engine: VLLMEngine, module: Owner) -> None:
    asked = [request((5 + index,), n=2, seed=index) for index in range(5)]
    expected = engine.generate(asked)
    pair = VLLMEngine(placement="separate", data_parallel_size=2, kv_cache_gib=0.25)
    pair.start(module)
    try:
        pair.sync(module)
        answers = pair.generate(asked)
    finally:
        pair.close()
    assert [[row.token_ids for row in group] for group in answers] == [
        [row.token_ids for row in group] for group in expected
    ]


def test_killed_in_mid_rollout_and_gone_on(engine: VLLMEngine, module: Owner, caplog: pytest.LogCaptureFixture) -> None:
    guarded = GuardedEngine(engine)
    guarded.sync(module)
    asked = [request(**LONG)]
    expected = engine.generate(asked)
    with shortly_after(signal.SIGKILL, group_of(engine)[0]):
        assert guarded.generate(asked) == expected
    assert guarded.restarts == 1
    assert "(died): the engine process ended with code -9 during 'generate'" in caplog.text


def test_hung_in_mid_rollout_is_named_and_ended(engine: VLLMEngine) -> None:
    pids = group_of(engine)
    engine._backend.processes[0].answer_timeout_s = 2
    with shortly_after(signal.SIGSTOP, pids[0]), pytest.raises(EngineFailure, match="within 2 s") as raised:
        engine.generate([request(**LONG)])
    assert raised.value.kind == "hung"
    engine.close()
    engine.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_by_address(module: Owner) -> None:
    """A server that we did not start serves one trainer after the other, whatever befell the first ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "app.engines.vllm.server", "--listen", listen]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with pytest.raises(ConfigurationError, match=r"^engine: .*no kernel for heads of 24 .* choose one of 32") as no:
            VLLMEngine(placement="separate", address=listen).start(owner(hidden_size=96))
        assert no.value.key == "engine"
        with pytest.raises(EngineFailure, match="kv cache") as raised:
            VLLMEngine(placement="separate", address=listen, kv_cache_gib=100_000).start(module)
        assert raised.value.kind == "start"
        adapted = owner("llama", seed=4)
        adapted.policy = add_adapters(adapted.policy, LoraSettings(r=4), 0).eval()
        perturb(adapted.policy, seed=4)
        for one, adapters in ((module, "auto"), (adapted, "apart")):
            engine = VLLMEngine(placement="separate", address=listen, kv_cache_gib=0.25, adapters=adapters)
            engine.start(one)
            engine.sync(one)
            assert worst_difference(one.policy, request(), engine.generate([request()])[0]) < 1e-5
            engine.close()
        assert server.poll() is None
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_no_engine_at_an_address() -> None:
    engine = VLLMEngine(placement="separate", address="127.0.0.1:9", start_timeout_s=0.5)
    with pytest.raises(EngineFailure, match=r"no engine at 127\.0\.0\.1:9 within 0\.5 s") as raised:
        engine.start(owner())
    assert raised.value.kind == "start"


def test_an_engine_that_cannot_start_says_why(module: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    engine = VLLMEngine(placement="separate")
    with pytest.raises(EngineFailure, match="ended with code 1 at its start; its last words: ") as raised:
        engine.start(module)
    assert raised.value.kind == "start"
    assert engine._backend is None


TRAINER = """
    import os, signal, time
    from app.engines.vllm.process import EngineProcess

    engine = EngineProcess(None, 60, 60)
    engine.connect()
    if {hang}:
        os.kill(engine.process.pid, signal.SIGSTOP)
    print(engine.process.pid, flush=True)
    engine.ask({{"op": "hello"}}) if {hang} else time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "hang"),
    [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGINT, True)],
    ids=["SIGTERM", "SIGKILL", "SIGINT", "SIGINT while the engine hangs"],
)
def test_no_engine_outlives_its_trainer(number: signal.Signals, hang: bool) -> None:
    command = [sys.executable, "-c", textwrap.dedent(TRAINER.format(hang=hang))]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert trainer.stdout is not None
    engine = psutil.Process(int(trainer.stdout.readline()))
    time.sleep(0.5)
    trainer.send_signal(number)
    trainer.wait(30)
    assert not psutil.wait_procs([engine], timeout=20)[1]
