"""What an optimiser takes, how its states are numbered, and the norm that gradients are clipped to."""

from typing import Any

import pytest
import torch

from app.errors import ConfigurationError
from app.policy.models import load_policy
from app.policy.optimizers import (
    OptimizerSettings,
    build_optimizer,
    check_optimizer,
    clip_gradients,
    number_by_model,
    trained_parameters,
)
from tests.running import policy_settings

IDS = torch.arange(3, 27).view(2, 12)


def parts(policy: Any) -> Any:
    return build_optimizer(*trained_parameters(policy), OptimizerSettings(lr=1e-2, weight_decay=0.1))


def test_states_numbered_by_the_model_load_like_torchs_own() -> None:
    policy = load_policy(policy_settings(), 0)
    optimizer = parts(policy)
    policy(input_ids=IDS).logits.square().mean().backward()
    optimizer.step()
    state = optimizer.state_dict()
    numbered = number_by_model(state, optimizer, policy)
    names = [name for name, _ in policy.named_parameters()]
    shapes = dict(policy.named_parameters())
    assert all(value["exp_avg"].shape == shapes[names[number]].shape for number, value in numbered["state"].items())
    assert numbered["param_groups"] != state["param_groups"]
    again = parts(policy)
    again.load_state_dict(numbered)
    for mine, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


@pytest.mark.parametrize("limit", [None, 0.1])
def test_clipping_returns_the_norm_before(limit: float | None) -> None:
    policy = load_policy(policy_settings(), 0)
    policy(input_ids=IDS).logits.square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert float(clip_gradients(policy, limit)) == pytest.approx(float(gradient.norm()), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(min(limit or 1e9, float(gradient.norm())), rel=1e-3)


def test_vectors_are_not_decayed() -> None:
    matrices, vectors = trained_parameters(load_policy(policy_settings("qwen2"), 0))
    assert all(parameter.dim() > 1 for parameter in matrices)
    assert all(parameter.dim() == 1 for parameter in vectors)
    assert [group["weight_decay"] for group in parts(load_policy(policy_settings(), 0)).param_groups] == [0.1, 0.0]


def test_8_bit_optimisers_are_refused_on_shards() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.optimizer\.name.*whole parameters"):
        check_optimizer(OptimizerSettings(name="adamw8bit"), sharded=True)
