"""A real vLLM engine that holds adapters beside the frozen weights: what it is sent, and what it computes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.engines.vllm.engine import VLLMEngine
from app.engines.weight_names import checkpoint_weights, separable_adapters
from app.engines.weight_sync import WeightSyncError, sampled_columns
from app.errors import ConfigurationError
from app.policy.lora import LoraSettings, add_adapters, base_model, is_adapter
from app.policy.sharding.merging import adapter_weights
from tests.engines.vllm.support import Owner, owner, request, worst_difference
from tests.families import family_policy

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
SETTINGS = LoraSettings(r=4, alpha=6.0)


def adapted(seed: int = 0) -> Owner:
    module = owner()
    module.policy = add_adapters(module.policy, SETTINGS, seed).eval()
    return module


def train(module: Owner, seed: int) -> None:
    """Other adapters in the same tensors, as an optimiser step leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.policy.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def bytes_of(weights: Iterator[tuple[str, torch.Tensor]]) -> int:
    return sum(tensor.numel() * 4 for _, tensor in weights)


@pytest.fixture(scope="module")
def module() -> Owner:
    return adapted()


@pytest.fixture(scope="module")
def engine(module: Owner) -> Iterator[VLLMEngine]:
    train(module, 1)
    engine = VLLMEngine(kv_cache_gib=0.25, adapters="apart")
    engine.start(module)
    yield engine
    engine.close()


@pytest.mark.slow
def test_the_first_sync_hands_over_everything_and_later_ones_the_adapters_alone(
    engine: VLLMEngine, module: Owner
) -> None:
    asked, alone = request(n=4), bytes_of(adapter_weights(module.policy))
    engine.sync(module)
    first = engine.generate([asked])[0]
    assert worst_difference(module.policy, asked, first) < 1e-4
    assert engine.last_sync_bytes == bytes_of(checkpoint_weights(module.policy)) + alone
    train(module, 2)
    engine.sync(module)
    second = engine.generate([asked])[0]
    assert worst_difference(module.policy, asked, second) < 1e-4
    assert worst_difference(base_model(module.policy), asked, second) < 1e-4  # adapters lie in it
    with module.policy.disable_adapter():
        assert worst_difference(module.policy, asked, second) > 0.1
    assert first != second
    assert engine.last_sync_bytes == alone


@pytest.mark.slow
def test_cached_prefixes_of_former_adapters_are_forgotten(engine: VLLMEngine, module: Owner) -> None:
    asked = request([4 + i % 60 for i in range(300)], n=2)
    engine.sync(module)
    engine.generate([asked])
    train(module, 3)
    engine.sync(module)
    assert worst_difference(module.policy, asked, engine.generate([asked])[0]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.k_proj.lora_A.weight",
        "model.layers.1.self_attn.v_proj.lora_B.weight",
        "model.layers.1.mlp.up_proj.lora_B.weight",
        "model.layers.0.mlp.down_proj.lora_A.weight",
    ],
)
def test_one_wrong_element_of_an_adapter_is_found_and_named(
    engine: VLLMEngine, module: Owner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from safetensors.torch import load, save

    engine.sync(module)
    adapt = engine._backend.adapt

    def spoilt(rank: int, data: bytes) -> None:
        held = load(data)
        held[name][-1, sampled_columns(held[name].shape[1], engine._syncs)[0]] += 1e-3
        adapt(rank, save(held))

    monkeypatch.setattr(engine._backend, "adapt", spoilt)
    with pytest.raises(WeightSyncError, match=name) as raised:
        engine.sync(module)
    assert raised.value.differ == [name]


def test_adapters_come_with_their_scaling_as_the_layer_computes() -> None:
    module = adapted()
    train(module, 1)
    held = dict(adapter_weights(module.policy))
    assert list(held) == separable_adapters(module.policy)
    plain, merged = (dict(checkpoint_weights(module.policy, merged)) for merged in (False, True))
    for name in {name.partition(".lora_")[0] for name in held}:
        change = held[f"{name}.lora_B.weight"] @ held[f"{name}.lora_A.weight"]
        torch.testing.assert_close(plain[f"{name}.weight"] + change, merged[f"{name}.weight"])
    assert plain.keys() == merged.keys()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("gpt2", ["c_attn"]), ("llama", ["lm_head"]), ("llama", ["embed_tokens"]), ("qwen3_moe", None)],
)
def test_what_an_engine_could_not_hold_beside_the_weights_is_merged(kind: str, targets: list[str] | None) -> None:
    config = LoraConfig(r=2, target_modules=targets or "all-linear")
    assert separable_adapters(get_peft_model(family_policy(kind), config)) == []


def test_adapters_that_vllm_has_no_place_for_are_refused_where_they_were_asked_for() -> None:
    engine, module = VLLMEngine(adapters="apart"), adapted()
    engine._family = "odd"
    with pytest.raises(ConfigurationError, match=r"^engine\.adapters: vLLM cannot hold these adapters of odd .*merged"):
        engine._check_adapters(module)
    assert VLLMEngine()._wanted_adapters(module) == []  # on a CPU
    module.device = torch.device("cuda")
    assert VLLMEngine()._wanted_adapters(module) == separable_adapters(module.policy)
    assert VLLMEngine(adapters="merged")._wanted_adapters(module) == []


def test_which_of_vllms_models_hold_adapters(tmp_path: Path) -> None:
    from app.engines.vllm.engine import write_model_files
    from app.engines.vllm.models import takes_adapters

    found = {}
    for kind in ("llama", "stablelm", "cohere2"):
        module = Owner(family_policy(kind), owner().tokenizer)
        write_model_files(module.policy, module.tokenizer, tmp_path)
        found[kind] = takes_adapters(tmp_path)
    assert found == {"llama": True, "stablelm": False, "cohere2": True}
