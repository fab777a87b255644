"""Policies out of training checkpoints, as files and as folders of shards."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from app.errors import ConfigurationError
from app.policy.exporting import save_policy
from app.policy.lora import LoraSettings, is_adapter
from app.policy.models import PolicySettings, check_path, load_policy, load_tokenizer
from app.policy.sharding.strategies import Sharding
from tests.running import equal_weights, policy_settings


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, PolicySettings, dict[str, torch.Tensor]]:
    """A file as a run saves it: its path, the run's settings, and the weights, which no seed gives."""
    settings = policy_settings("qwen2")
    weights = {name: tensor + 1 for name, tensor in load_policy(settings, 3).state_dict().items()}
    state = {f"policy.{name}": tensor for name, tensor in weights.items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "policy_settings": asdict(settings), "rollouts": {"waiting": [[]]}}, path)
    return path, settings, weights


def weights_of(path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    return load_policy(PolicySettings(path=str(path), **changes)).state_dict()


def test_a_checkpoint_gives_the_trained_weights_and_the_runs_tokenizer(checkpoint: Any) -> None:
    path, settings, weights = checkpoint
    assert equal_weights(weights_of(path), weights)
    reference = Sharding().load_reference(PolicySettings(path=str(path)), seed=0, offload=False)
    assert equal_weights(reference.state_dict(), weights)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    own, trained = load_tokenizer(PolicySettings(path=str(path))), load_tokenizer(settings)
    assert own.get_vocab() == trained.get_vocab()


@pytest.mark.parametrize("name", ["state_dict", "model"])  # ModelParallelStrategy's, and FSDPStrategy's
def test_shards_give_the_same(checkpoint: Any, tmp_path: Path, name: str) -> None:
    path, settings, weights = checkpoint
    folder = tmp_path / "sharded.ckpt"
    dcp.save({name: torch.load(path)["state_dict"], "optimizer_0": {"x": torch.ones(2)}}, checkpoint_id=folder)
    torch.save({"policy_settings": asdict(settings)}, folder / "meta.pt")
    assert equal_weights(weights_of(folder), weights)


def test_a_checkpoint_of_a_pretrained_policy_and_one_of_a_checkpoint(checkpoint: Any, tmp_path: Path) -> None:
    path, settings, weights = checkpoint
    save_policy(load_policy(settings, 5), load_tokenizer(settings), tmp_path / "hf")
    content = torch.load(path)
    for base in (tmp_path / "hf", path):
        content["policy_settings"] = asdict(PolicySettings(path=str(base)))
        torch.save(content, tmp_path / "next.ckpt")
        assert equal_weights(weights_of(tmp_path / "next.ckpt"), weights)


def test_dtype_and_attention_are_the_new_runs_to_choose(checkpoint: Any) -> None:
    policy = load_policy(PolicySettings(path=str(checkpoint[0]), dtype="bfloat16", attn_implementation="eager"))
    assert policy.dtype == torch.bfloat16
    assert policy.config._attn_implementation == "eager"


def test_weights_of_another_policy_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    path, settings, _ = checkpoint
    content = torch.load(path)
    content["policy_settings"] = asdict(replace(settings, config={**settings.config, "intermediate_size": 96}))
    torch.save(content, path)
    with pytest.raises(ConfigurationError, match=r"policy.path: the weights in .* do not fit"):
        weights_of(path)


def adapters(**changes: Any) -> PolicySettings:
    return replace(policy_settings(), lora=LoraSettings(**({"r": 2} | changes)))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state.popitem(), "they lack base_model.+lora_B"),
        (lambda state: state.clear(), "they lack base_model.+lora_A"),
        (lambda state: state.update({next(iter(state)): torch.zeros(3, 32)}), r"shape of base_model.+ is \(3, 32\)"),
    ],
)
def test_adapters_that_lack_or_differ_are_refused(tmp_path: Path, spoil: Any, reason: str) -> None:
    """Frozen weights are not in such a checkpoint: what is not there must not be taken for one of them."""
    settings, path = adapters(), tmp_path / "adapters.ckpt"
    state = {f"policy.{n}": t for n, t in load_policy(settings, 3).state_dict().items() if is_adapter(n)}
    torch.save({"state_dict": state, "policy_settings": asdict(settings)}, path)
    assert weights_of(path)
    spoil(state)
    torch.save({"state_dict": state, "policy_settings": asdict(settings)}, path)
    with pytest.raises(ConfigurationError, match=f"policy.path: the weights in .* do not fit: .*{reason}"):
        weights_of(path)


def test_new_adapters_on_a_checkpoint_are_refused(checkpoint: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.lora: .* start from an export"):
        weights_of(checkpoint[0], lora=LoraSettings(r=2))


@pytest.mark.parametrize("content", [{"state_dict": {}}, ["a list"]])
def test_what_is_no_checkpoint_of_fit_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="it is not a checkpoint of fit"):
        weights_of(tmp_path / "other.ckpt")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save({"policy_settings": Path("/")}, tmp_path / "code.ckpt")
    with pytest.raises(ConfigurationError, match="cannot read the checkpoint"):
        weights_of(tmp_path / "code.ckpt")


def test_a_missing_checkpoint_is_refused_without_reading_anything(checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no checkpoint .*did you mean .*last.ckpt"):
        check_path(PolicySettings(path=str(tmp_path / "lst.ckpt")))
