"""Dropout off, wherever a model keeps its probability."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.policy.dropout import switch_off_dropout
from app.policy.lora import LoraSettings, add_adapters
from tests.models import tiny_model

IDS = torch.arange(1, 13)[None]
# Architectures that keep it in layers, in numbers of attention, and in numbers of the decoder.
SMALL = {
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 32},
    "opt": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "vocab_size": 32}
    | {"word_embed_proj_dim": 16, "layerdrop": 0.5, "attention_dropout": 0.5, "dropout": 0.5},
    "qwen2": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    | {"intermediate_size": 32, "vocab_size": 32, "attention_dropout": 0.5},
}
# Architectures whose routers are noisy in training: by default, or by their configuration.
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL |= {
    "phimoe": SMALL["qwen2"] | EXPERTS,
    "mixtral": SMALL["qwen2"] | EXPERTS | {"router_jitter_noise": 0.3, "attention_dropout": 0.0},
    "minimax_m2": SMALL["qwen2"]
    | EXPERTS
    | {"router_jitter_noise": 0.3, "attention_dropout": 0.0, "head_dim": 8}
    | {"rotary_dim": 8},
    "dbrx": {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 32, "max_seq_len": 64}
    | {"attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0}}
    | {"ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.3}},
}


@pytest.mark.parametrize("kind", SMALL)
def test_training_mode_then_computes_what_eval_mode_does(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL[kind])).train()
    before = model(input_ids=IDS).logits
    expected = model.eval()(input_ids=IDS).logits
    assert not torch.allclose(before, expected)
    switch_off_dropout(model.train())
    assert model.training
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_an_adapters_own_dropout_stays() -> None:
    model = add_adapters(tiny_model(), LoraSettings(r=2, dropout=0.25), seed=0)
    switch_off_dropout(model)
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.25}
