"""Tensors that are stored under several names, or under another one than the model's first."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import ConfigurationError
from app.policy.exporting import save_policy
from app.policy.models import load_policy, load_tokenizer
from app.policy.sharding.gathering import whole_weights
from app.policy.sharding.strategies import Sharding
from tests.running import policy_settings


def test_a_head_that_the_configuration_ties_to_other_embeddings_is_refused(one_rank: None, tmp_path: Path) -> None:
    """transformers would use both and say so in a warning, other readers the embeddings alone."""
    settings = policy_settings("qwen2")
    folder = save_policy(load_policy(settings, 3), load_tokenizer(settings), tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    stored = replace(settings, config=None, path=str(folder))
    embeddings = weights["model.embed_tokens.weight"]
    for head, fits in ((embeddings.clone(), True), (embeddings + 1, False)):
        save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
        for kind in ("single", "fsdp2"):
            with contextlib.nullcontext() if fits else pytest.raises(ConfigurationError) as raised:
                policy = Sharding(kind=kind).load_policy(stored, 0)
            if fits:
                assert torch.equal(whole_weights(policy)["model.embed_tokens.weight"], embeddings)
            else:
                assert "says tie_word_embeddings: true, but lm_head.weight there is not" in str(raised.value)


def test_embeddings_may_be_stored_under_the_heads_name(one_rank: None, tmp_path: Path) -> None:
    settings = policy_settings("qwen2")
    folder = save_policy(load_policy(settings, 3), load_tokenizer(settings), tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    policy = Sharding(kind="fsdp2").load_policy(replace(settings, config=None, path=str(folder)), 0)
    assert torch.equal(whole_weights(policy)["model.embed_tokens.weight"], weights["lm_head.weight"])
