"""Folders that hold more than their configuration has a place for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import ConfigurationError
from app.policy.exporting import save_policy
from app.policy.models import PolicySettings, empty_policy, load_policy, load_tokenizer
from app.policy.sharding.stored import stored_weights
from app.policy.tokenizers import NewTokenizerSettings
from tests.models import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy of two layers."""
    config = tiny_config("llama")
    del config["vocab_size"]
    settings = PolicySettings(config=config, tokenizer=NewTokenizerSettings())
    return save_policy(load_policy(settings, 3), load_tokenizer(settings), tmp_path / "policy")


def test_weights_of_more_layers_than_the_configuration_has_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    fewer = {"num_hidden_layers": 1, "layer_types": None}
    (folder / "config.json").write_text(json.dumps(config | fewer))
    settings = PolicySettings(path=str(folder))
    expected = r"policy.path: the weights in .* hold model\.layers\.1\.\S+ and \d+ more, for which config.json has no"
    with pytest.raises(ConfigurationError, match=expected):
        load_policy(settings)
    with pytest.raises(ConfigurationError, match=expected):  # as sharded policies are read
        list(stored_weights(settings, empty_policy(settings)))


def test_tensors_that_no_larger_model_would_have_are_passed_over(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    others = {"v_head.weight": torch.zeros(2), "visual.blocks.3.norm.weight": torch.zeros(2)}
    save_file(weights | others, folder / "model.safetensors", metadata={"format": "pt"})
    settings = PolicySettings(path=str(folder))
    loaded = load_policy(settings).state_dict()
    assert not loaded.keys() & others.keys()
    assert list(stored_weights(settings, empty_policy(settings)))
