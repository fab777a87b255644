"""Values of new models on the meta device are those that transformers draws."""

from dataclasses import replace

import pytest
import torch

from app.policy.lora import LoraSettings
from app.policy.models import empty_policy, finished, load_policy
from app.policy.sharding.filling import draw
from tests.running import equal_weights, policy_settings


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)])
def test_values_are_drawn_as_transformers_draws_them(kind: str, lora: LoraSettings | None) -> None:
    settings = replace(policy_settings(kind), lora=lora)
    before, drawn = torch.get_rng_state(), {}
    model = finished(empty_policy(settings), settings, 3)
    draw(model.get_base_model() if lora else model, 3, lambda name, whole: drawn.update({name: whole.clone()}))
    plain = dict(load_policy(policy_settings(kind), 3).named_parameters())
    assert equal_weights(plain, {name.replace(".base_layer", ""): whole for name, whole in drawn.items()})
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.is_meta for parameter in model.parameters())
