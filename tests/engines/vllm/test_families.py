"""Families beside LLaMA's kin on vLLM: tied heads, layouts turned round, classes of transformers, experts on a CPU."""

from pathlib import Path

import pytest
import torch

from app.engines.engine import GenerationRequest, SamplingSettings
from app.engines.faults import EngineFailure
from app.engines.vllm.engine import VLLMEngine, write_model_files
from app.engines.vllm.models import check_model, head_sizes
from app.engines.weight_sync import WeightSyncError
from app.errors import ConfigurationError
from tests.engines.vllm.support import perturb
from tests.families import PROMPTS, family_policy, log_probs_alone, owner_of, tokenizer

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")


def _own(kind: type) -> dict[str, object]:
    """A class's attributes, but for answers that transformers keeps there for itself."""
    return {name: value for name, value in vars(kind).items() if not name.endswith("_cached_value")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["olmo2", "gpt2", "gemma2", "cohere2"])
def test_a_colocated_engine_samples_the_policy_and_leaves_its_class_alone(kind: str) -> None:
    policy, engine = family_policy(kind), VLLMEngine(kv_cache_gib=0.25)
    classes = {type(module): _own(type(module)) for module in policy.modules()}
    owner = owner_of(policy)
    try:
        engine.start(owner)
        engine.sync(owner)
        perturb(policy)
        engine.sync(owner)
        # longer than the windows of the families that have some
        requests = [GenerationRequest(ids, 2, 0, SamplingSettings(max_new_tokens=16), ()) for ids in PROMPTS]
        groups = engine.generate(requests)
    finally:
        engine.close()
    assert {kind: _own(kind) for kind in classes} == classes
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            whole = log_probs_alone(policy, prompt, completion.token_ids)
            assert (torch.tensor(completion.log_probs) - whole).abs().max() < 1e-4


def test_experts_are_refused_on_a_cpu_before_anything_starts(tmp_path: Path) -> None:
    family_policy("qwen3_moe").config.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^engine: vLLM's CPU build keeps the experts .*qwen3_moe"):
        check_model(tmp_path, "float32")


@pytest.mark.parametrize("kind", ["mamba2", "falcon_h1"])
def test_layers_that_carry_a_state_are_refused_on_a_cpu_before_anything_starts(kind: str, tmp_path: Path) -> None:
    write_model_files(family_policy(kind), tokenizer(), tmp_path)
    with pytest.raises(ConfigurationError, match=rf"^engine: {kind} carries a state .*: use the transformers engine$"):
        check_model(tmp_path, "float32")


def test_families_whose_weights_vllm_does_not_take_are_refused_before_anything_starts(tmp_path: Path) -> None:
    family_policy("bloom").config.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^engine: .* BLOOM .*: use the transformers engine$"):
        check_model(tmp_path, "float32")


@pytest.mark.parametrize("error", [EngineFailure("refused", "KeyError: 'w'"), WeightSyncError(["w"], [])], ids=repr)
def test_what_vllm_does_not_take_at_the_first_sync_is_no_failure_that_a_restart_may_cure(error: Exception) -> None:
    engine = VLLMEngine()
    engine._family = "odd"
    with pytest.raises(ConfigurationError, match=r"^engine: vLLM's model of odd does not take .*'?w'?"):
        _raise_within(engine, error)
    engine._syncs = 1
    with pytest.raises(type(error)):
        _raise_within(engine, error)


def test_an_engine_that_dies_at_its_first_sync_is_started_again() -> None:
    with pytest.raises(EngineFailure):
        _raise_within(VLLMEngine(), EngineFailure("died", "RuntimeError: out of memory"))


def _raise_within(engine: VLLMEngine, error: Exception) -> None:
    with engine._family_in_one_line():
        raise error


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("llama", {32}), ("gemma4_text", {32}), ("mamba", set()), ("deepseek_v3", set()), ("gemma3", {32})],
)
def test_head_sizes_are_those_of_every_layer(kind: str, sizes: set[int]) -> None:
    assert head_sizes(family_policy(kind).config) == sizes


def test_layers_that_differ_have_sizes_of_their_own() -> None:
    assert head_sizes(family_policy("gemma4_text", global_head_dim=64).config) == {32, 64}


def test_an_engine_has_no_room_beyond_where_rotary_embeddings_change() -> None:
    engine = VLLMEngine(max_model_len=128)
    assert VLLMEngine()._longest_row(64) == 64
    assert VLLMEngine(max_model_len=48)._longest_row(64) == 48
    assert engine._longest_row(None) == 128
    with pytest.raises(ConfigurationError, match=r"^engine\.max_model_len: must be at most 64.* got 128"):
        engine._longest_row(64)
