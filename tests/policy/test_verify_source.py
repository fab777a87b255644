"""Weights that are not what was written are refused before anything is loaded; code beside weights is not run."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from app.errors import ConfigurationError
from app.policy.checkpoints import verify_source
from app.policy.exporting import save_policy
from app.policy.models import PolicySettings, load_policy, load_tokenizer
from tests.running import policy_settings
from tests.storage.code import Marks


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = policy_settings()
    return save_policy(load_policy(settings, 3), load_tokenizer(settings), tmp_path_factory.mktemp("export") / "hf")


def checkpoint(path: Path, base: Path) -> Path:
    policy = load_policy(PolicySettings(path=str(base)))
    state = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    torch.save({"state_dict": state, "policy_settings": asdict(PolicySettings(path=str(base)))}, path)
    return path


def flip(path: Path) -> bytes:
    original = path.read_bytes()
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    return original


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_of_an_export_is_refused_unless_that_is_left_out(export: Path, name: str) -> None:
    settings = PolicySettings(path=str(export))
    verify_source(settings)
    original = flip(export / name)
    try:
        hint = "if the change is yours, delete its checksums.json"
        with pytest.raises(ConfigurationError, match=rf"policy\.path: .*is damaged: {name} is not what .*{hint}"):
            verify_source(settings)
        verify_source(replace(settings, verify=False))
    finally:
        (export / name).write_bytes(original)


def test_a_checkpoint_and_what_it_was_made_from_are_both_looked_at(export: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.ckpt", export)
    settings = PolicySettings(path=str(path))
    verify_source(settings)
    original = flip(export / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"policy\.path: .*hf is damaged: model\.safetensors"):
        verify_source(settings)
    (export / "model.safetensors").write_bytes(original)
    flip(path)
    with pytest.raises(ConfigurationError, match=r"policy\.path: .*last\.ckpt is damaged: its record"):
        verify_source(settings)
    verify_source(replace(settings, verify=False))


def test_an_export_whose_file_is_gone_is_refused_even_unverified(export: Path) -> None:
    original = (export / "generation_config.json").read_bytes()
    (export / "generation_config.json").unlink()
    try:
        with pytest.raises(ConfigurationError, match=r"lacks generation_config\.json"):
            verify_source(PolicySettings(path=str(export), verify=False))
    finally:
        (export / "generation_config.json").write_bytes(original)


@pytest.mark.parametrize("content", ["code", "half", "empty", "text"])
def test_weights_in_a_bin_file_that_are_no_data_are_refused_in_one_line(
    export: Path, tmp_path: Path, content: str
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((export / name).read_bytes())
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "marker"
    torch.save({"weights": Marks(marker)}, file)
    if content != "code":
        file.write_bytes({"half": file.read_bytes()[:300], "empty": b"", "text": b"a letter"}[content])
    with pytest.raises(ConfigurationError, match=r"policy\.path: cannot load the model of") as caught:
        load_policy(PolicySettings(path=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not marker.exists()
