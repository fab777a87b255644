"""A policy that is not sharded is whole and plain as it is."""

import torch

from app.policy.models import load_policy
from app.policy.sharding.gathering import whole_parameters
from app.policy.sharding.wrapping import plain_model
from tests.running import policy_settings

IDS = torch.arange(3, 27).view(2, 12)


def test_whole_models_are_whole_already() -> None:
    policy = load_policy(policy_settings(), 0)
    with whole_parameters(policy):
        assert policy(input_ids=IDS).logits.shape[:2] == IDS.shape
    plain = plain_model(policy)
    assert all(parameter.is_meta for parameter in plain.parameters())
    assert plain.config.to_dict() == policy.config.to_dict()
