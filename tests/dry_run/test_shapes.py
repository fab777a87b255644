"""Sizes that the dry run takes from a configuration, against what the model itself holds and caches."""

import pytest
import torch
from transformers import DynamicCache

from app.dry_run.memory import Shape
from tests.families import family_policy


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "gpt2",
        "opt",
        "bloom",
        "deepseek_v2",
        "deepseek_v3",
        "gemma3_text",
        "gemma4_text",
        "gpt_oss",
        "mamba",
        "mamba2",
    ],
)
def test_the_cache_of_a_token_is_as_large_as_transformers_makes_it(kind: str) -> None:
    policy = family_policy(kind)
    cache = DynamicCache(config=policy.config)
    name = "cache_params" if kind.startswith("mamba") else "past_key_values"
    with torch.no_grad():
        policy(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=True, **{name: cache})
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    numbers = sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in layers)
    assert Shape.of(policy.config).kv_elements_per_token == numbers


@pytest.mark.parametrize(
    ("kind", "weight", "width"),
    [
        ("opt", "model.decoder.layers.0.fc1.weight", 0),
        ("llama", "model.layers.0.mlp.gate_proj.weight", 0),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight", 1),
        ("falcon", "transformer.h.0.mlp.dense_h_to_4h.weight", 0),
        ("gemma3n_text", "model.layers.0.mlp.gate_proj.weight", 0),
    ],
)
def test_the_feed_forward_width_is_the_models(kind: str, weight: str, width: int) -> None:
    policy = family_policy(kind)
    assert Shape.of(policy.config).ffn == policy.get_parameter(weight).shape[width]


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "xlstm", "gemma3", "zamba2"])
def test_configurations_of_other_kinds_have_a_shape(kind: str) -> None:
    policy = family_policy(kind)
    shape = Shape.of(policy.config)
    assert shape.hidden == policy.get_input_embeddings().weight.shape[1]
    assert shape.vocab == policy.get_input_embeddings().weight.shape[0]
