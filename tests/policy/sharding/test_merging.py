"""A policy's weights by name, with its adapters merged into them."""

import copy

import torch
from peft import LoraConfig, get_peft_model

from app.policy.sharding.merging import policy_weights
from tests.models import tiny_model


def test_names_are_those_of_a_checkpoint_and_the_tied_head_is_among_them() -> None:
    policy = tiny_model("qwen2")
    sent = dict(policy_weights(policy))
    assert sent.keys() == policy.state_dict().keys()
    assert sent["lm_head.weight"].data_ptr() == sent["model.embed_tokens.weight"].data_ptr()
    assert not any(tensor.requires_grad for tensor in sent.values())


def test_lora_is_merged_as_peft_merges_it_and_the_policy_is_left_alone() -> None:
    policy = get_peft_model(
        tiny_model("llama"),
        LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"]),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    before = copy.deepcopy(policy.state_dict())
    sent = dict(policy_weights(policy))
    after = policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    merged = copy.deepcopy(policy).merge_and_unload()
    expected = merged.state_dict()
    assert sent.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-6, atol=1e-7)
    ids = torch.arange(4, 12)[None]
    plain = tiny_model("llama", seed=9)
    plain.load_state_dict(sent)
    torch.testing.assert_close(plain(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)


def test_buffers_that_are_saved_are_weights_too() -> None:
    policy = tiny_model("deepseek_v3")
    sent = dict(policy_weights(policy))
    assert sent.keys() == policy.state_dict().keys()
    assert any(name.endswith("e_score_correction_bias") for name in sent)
