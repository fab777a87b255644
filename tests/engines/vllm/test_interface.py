"""What the installed vLLM offers where only a GPU would call it: names, arguments and tags that we rely on."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.faults import EngineFailure
from app.engines.vllm.colocated import failing
from app.engines.vllm.local import LocalEngineSettings, launcher_environment
from app.engines.vllm.process import _names_of
from app.engines.vllm.separate import SeparateEngines
from app.engines.vllm.settings import VLLMSettings, sampling_params
from app.engines.vllm.transfer import IPC_BUFFER_BYTES, _ipc
from app.engines.vllm.worker import _own_names
from app.errors import ConfigurationError
from app.seeds import derive_seed
from tests.engines.vllm.support import request, word_tokenizer
from tests.engines.vllm.transfer_on_cpu import GlooCommunicator

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")


def takes(function: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Whether a method takes these arguments after ``self``."""
    return inspect.signature(function).bind(None, *arguments, **named) is not None


def test_calls_that_reach_a_gpus_worker() -> None:
    from vllm import LLM
    from vllm.device_allocator import DEFERRABLE_TAGS
    from vllm.v1.executor.abstract import SLEEP_TAGS
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as FirstRunner
    from vllm.v1.worker.gpu_worker import Worker

    for runner in (FirstRunner, SecondRunner):
        assert takes(runner.reload_weights, weights_iterator=iter(()))
        assert takes(runner.get_model)
    assert takes(Worker.init_weight_transfer_engine, init_info={})
    assert takes(Worker.update_weights, update_info={})
    assert takes(Worker.start_weight_update)
    assert takes(Worker.finish_weight_update)
    assert takes(LLM.sleep, 1)
    assert takes(LLM.wake_up, ["weights"])
    assert set(DEFERRABLE_TAGS) == set(SLEEP_TAGS) == {"weights", "kv_cache"}


def test_a_part_of_a_fused_layer_is_found_by_the_family_s_own_mapping_alone() -> None:
    """StableLM says nowhere else what its projections are fused into."""
    from vllm.model_executor.models.stablelm import StablelmForCausalLM

    assert not hasattr(StablelmForCausalLM, "packed_modules_mapping")
    prefix = "model.layers.0.self_attn."
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        names = list(_own_names(StablelmForCausalLM, f"{prefix}{name}.weight"))
        assert names == [(f"{prefix}{name}.weight", None), (f"{prefix}qkv_proj.weight", part)]
    up = list(_own_names(StablelmForCausalLM, "model.layers.0.mlp.up_proj.weight"))
    assert up[-1] == ("model.layers.0.mlp.gate_up_proj.weight", 1)


@pytest.mark.parametrize("name", ["VLLMValidationError", "GenerationError", "LoRAAdapterNotFoundError"])
def test_vllms_own_errors_are_failures_of_the_engine(name: str) -> None:
    """They are no ValueErrors nor RuntimeErrors: on one rank alone they would leave the others waiting."""
    from vllm import exceptions

    kind = getattr(exceptions, name)
    with pytest.raises(EngineFailure, match=f"it failed: {name}: "), failing("died", "it failed"):
        raise kind(*["no"] * (2 if name.startswith("LoRA") else 1))


def test_seeds_fit_into_the_gpu_samplers_int64() -> None:
    assert all(0 <= derive_seed(number) < 2**63 for number in range(1000))


def test_what_replaces_nccl_in_tests_is_called_as_vllms_communicator() -> None:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    for name in ("broadcast", "destroy"):
        theirs, ours = (
            list(inspect.signature(getattr(cls, name)).parameters) for cls in (PyNcclCommunicator, GlooCommunicator)
        )
        assert theirs == ours
    assert NCCLTrainerWeightTransferEngine(client=None, source=None).model_update_group is None


@pytest.mark.parametrize(("rows", "size"), [(1000, IPC_BUFFER_BYTES), (152_064, 152_064 * 3584 * 2)])
def test_the_largest_weight_fits_into_the_shared_buffer(rows: int, size: int) -> None:
    """vLLM's default of 1 GiB is less than the embeddings of a 7B model."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine

    sender, information = _ipc({"embed": (rows, 3584), "norm": (3584,)}, torch.bfloat16)
    assert (information.packed_buffer_size_bytes, information.packed, information.is_sender) == (size, True, True)
    replaced = {name for name in vars(sender) if not name.startswith("__")} - {"_abc_impl"}
    assert (
        replaced == {"_all_gather_and_merge_handles", "_post_send_sync"} <= vars(IPCTrainerWeightTransferEngine).keys()
    )


def test_what_torchrun_would_have_told_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = launcher_environment(0, 3)
    assert alone | {"MASTER_PORT": ""} == {
        "RANK": "0",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert launcher_environment(9, 1) == {"RANK": "9", "LOCAL_RANK": "1"}


def test_devices_are_numbered_among_those_that_the_trainer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _names_of([2, 3]) == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-ab, 7")
    assert _names_of([1, 2]) == ["GPU-ab", "7"]
    with pytest.raises(ConfigurationError, match=r"engine\.devices: 3 is not among the 3 GPUs"):
        _names_of([0, 3])


def test_the_trainers_spare_memory_is_given_back_before_an_engine_counts_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("empty"))
    monkeypatch.setattr("app.engines.vllm.separate.EngineProcess", lambda *_: order.append("engine"))
    monkeypatch.setattr(SeparateEngines, "_build", lambda *_: (16, None))
    local = LocalEngineSettings("bfloat16", 0.4, None, 1, None, 8, True, False, 0)
    SeparateEngines(VLLMSettings(placement="separate"), local, torch.device("cuda", 0)).start(tmp_path)
    assert order == ["empty", "engine"]


@pytest.mark.parametrize(("shown", "found"), [(True, "w1"), (False, None)])
def test_a_stop_string_may_be_a_special_token(shown: bool, found: str | None) -> None:
    """vLLM's text leaves special tokens out unless it is told not to, and a stop string with them."""
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    (params,) = sampling_params(request(n=1, end=(), stop_strings=("w1",)))
    params.skip_special_tokens = params.skip_special_tokens or not shown
    asked = {"request_id": "a", "prompt_token_ids": [5, 6], "sampling_params": params, "arrival_time": 0.0}
    optional = ("mm_features", "pooling_params", "lora_request", "cache_salt", "data_parallel_rank")
    engine_request = EngineCoreRequest(**asked, **dict.fromkeys(optional))
    detokenizer = IncrementalDetokenizer.from_new_request(word_tokenizer(), engine_request)
    assert detokenizer.update([7, 8, 1], False) == found
