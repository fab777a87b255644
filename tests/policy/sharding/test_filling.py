"""What a policy holds that was built on the meta device: as transformers draws it, or reads it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.policy.lora import LoraSettings
from app.policy.models import PolicySettings, load_policy
from app.policy.sharding.gathering import whole_weights
from app.policy.sharding.strategies import Sharding
from app.policy.tokenizers import NewTokenizerSettings
from app.policy.weights import named_buffers
from tests.models import SHAPES, tiny_model
from tests.running import equal_weights, policy_settings

IDS = torch.arange(3, 27).view(2, 12)


def stored(kind: str, folder: Path, **changes: Any) -> tuple[Any, PolicySettings]:
    """A model whose every weight is one of a kind, and the settings of a policy from its folder."""
    model, generator = tiny_model(kind, **changes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in {id(tensor): tensor for tensor in model.state_dict().values()}.values():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    return model, PolicySettings(path=str(folder), tokenizer=NewTokenizerSettings())


@pytest.mark.parametrize("kind", SHAPES)
def test_shards_hold_what_the_folder_holds(one_rank: None, tmp_path: Path, kind: str) -> None:
    """Under the model's names, in its layout; with the buffers that are saved and those that are computed."""
    model, settings = stored(kind, tmp_path)
    policy = Sharding(kind="fsdp2").load_policy(settings, 0)
    assert equal_weights(whole_weights(model), whole_weights(policy))
    assert equal_weights(dict(named_buffers(model, False)), dict(named_buffers(policy, False)))
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "deepseek_v3", "apertus"])
def test_shards_of_a_new_model_hold_what_the_whole_model_holds(one_rank: None, kind: str) -> None:
    """Also where a family draws parameters and computes buffers in one, and where a constructor sets parameters."""
    settings = policy_settings(kind)
    whole, policy = load_policy(settings, 3), Sharding(kind="fsdp2").load_policy(settings, 3)
    assert equal_weights(whole_weights(whole), whole_weights(policy))
    assert equal_weights(dict(named_buffers(whole, False)), dict(named_buffers(policy, False)))


def test_weights_that_stay_in_float32_do_so_in_shards(one_rank: None, tmp_path: Path) -> None:
    """As ``from_pretrained`` leaves them: a router's rounded bias chooses other experts."""
    _, settings = stored("deepseek_v3", tmp_path)
    low = replace(settings, dtype="bfloat16", lora=LoraSettings(r=2))
    whole, shards = (whole_weights(Sharding(kind=kind).load_policy(low, 0)) for kind in ("single", "fsdp2"))
    assert equal_weights(whole, shards)
    assert {name: tensor.dtype for name, tensor in whole.items()} == {n: tensor.dtype for n, tensor in shards.items()}


def test_a_frozen_base_is_the_folders_too(one_rank: None, tmp_path: Path) -> None:
    model, settings = stored("gemma3_text", tmp_path)
    adapted = replace(settings, lora=LoraSettings(r=2))
    sharding = Sharding(kind="fsdp2")
    for policy in (sharding.load_policy(adapted, 0), sharding.load_reference(adapted, 0, offload=False)):
        with torch.no_grad():
            torch.testing.assert_close(policy(input_ids=IDS).logits, model(input_ids=IDS).logits)
