"""Families that vLLM cannot run on a CPU are refused by their configuration."""

import pytest

from app.engines.vllm.models import check_model, head_sizes
from app.engines.weight_sync import WeightSyncError
from app.errors import ConfigurationError
from tests.families import family_policy


def test_experts_are_refused_on_a_cpu_before_anything_starts(tmp_path) -> None:
    family_policy("qwen3_moe").config.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^engine: vLLM's CPU build keeps the experts .*qwen3_moe"):
        check_model(tmp_path, "float32")


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("llama", {32}), ("gemma4_text", {32}), ("mamba", set()), ("deepseek_v3", set()), ("gemma3", {32})],
)
def test_head_sizes_are_those_of_every_layer(kind: str, sizes: set[int]) -> None:
    assert head_sizes(family_policy(kind).config) == sizes


def test_layers_that_differ_have_sizes_of_their_own() -> None:
    assert head_sizes(family_policy("gemma4_text", global_head_dim=64).config) == {32, 64}


def test_nothing_advises_to_switch_the_proof_off() -> None:
    assert "verify_weights" not in str(WeightSyncError(["embed"], []))
