"""A policy's weights by name, with its adapters merged into them."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from app.engines.weight_names import separable_adapters
from app.policy.lora import LoraSettings
from app.policy.models import PolicySettings
from app.policy.sharding.merging import adapter_weights, policy_weights
from app.policy.sharding.strategies import Sharding
from app.policy.tokenizers import NewTokenizerSettings
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


def test_sharded_adapters_of_experts_are_merged_as_whole_ones(one_rank: None, tmp_path: Path) -> None:
    """After a few steps of each; peft reshapes these adapters."""
    tiny_model("mixtral").save_pretrained(tmp_path)
    settings = PolicySettings(path=str(tmp_path), tokenizer=NewTokenizerSettings(), lora=LoraSettings(r=2))
    merged = []
    for kind in ("single", "fsdp2"):
        policy = Sharding(kind=kind).load_policy(settings, 0).train()
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            policy(input_ids=torch.arange(3, 27).view(2, 12), use_cache=False).logits.log_softmax(-1)[
                ..., 3
            ].mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        merged.append({name: tensor.clone() for name, tensor in policy_weights(policy)})
    base = tiny_model("mixtral").state_dict()
    assert merged[0].keys() == merged[1].keys() == base.keys()
    for name, tensor in merged[0].items():
        torch.testing.assert_close(merged[1][name], tensor)
    assert not torch.equal(
        merged[1]["model.layers.0.mlp.experts.down_proj"], base["model.layers.0.mlp.experts.down_proj"]
    )


def test_sharded_adapters_by_themselves_are_the_whole_ones(one_rank: None, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    settings = PolicySettings(path=str(tmp_path), tokenizer=NewTokenizerSettings(), lora=LoraSettings(r=2, alpha=6.0))
    plain, sharded = (Sharding(kind=kind).load_policy(settings, 0) for kind in ("single", "fsdp2"))
    whole, gathered = dict(adapter_weights(plain)), dict(adapter_weights(sharded))
    assert list(whole) == list(gathered) == separable_adapters(plain) == separable_adapters(sharded)
    assert len(whole) == 2 * 7 * 2
    for name, tensor in whole.items():
        assert torch.equal(gathered[name], tensor)
    base = {name: tensor.clone() for name, tensor in policy_weights(sharded, merged=False)}
    assert all(torch.equal(tensor, base[name]) for name, tensor in tiny_model("llama").state_dict().items())


def test_buffers_that_are_saved_are_weights_too() -> None:
    policy = tiny_model("deepseek_v3")
    sent = dict(policy_weights(policy))
    assert sent.keys() == policy.state_dict().keys()
    assert any(name.endswith("e_score_correction_bias") for name in sent)
