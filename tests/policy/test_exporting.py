"""What an exported folder says to readers of all kinds: what came stays, what is new speaks to transformers 4 too."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.policy.exporting import save_policy
from app.policy.models import load_policy, load_tokenizer
from app.policy.settings import PolicySettings
from app.policy.sharding.gathering import whole_weights
from app.policy.sharding.strategies import Sharding
from app.policy.sharding.wrapping import plain_model
from app.policy.tokenizers import NewTokenizerSettings
from tests.models import nested_config
from tests.running import equal_weights, policy_settings

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def exported(settings: PolicySettings, folder: Path) -> Path:
    return save_policy(load_policy(settings), load_tokenizer(settings), folder, settings=settings)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers 4 wrote it, with what only its authors know of."""
    folder = exported(policy_settings("llama"), tmp_path_factory.mktemp("hub") / "model")
    config = {name: value for name, value in read(folder / "config.json").items() if name != "rope_parameters"}
    older = {"torch_dtype": "bfloat16", "rope_theta": 5e5, "rope_scaling": LLAMA3, "authors_note": 1}
    config |= {**older, "transformers_version": "4.46.0"}
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = read(folder / "tokenizer_config.json") | {"tokenizer_class": "LlamaTokenizer", "authors_note": 2}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_configuration_and_tokenizer_stay_as_they_came(published: Path, tmp_path: Path) -> None:
    folder = exported(PolicySettings(path=str(published)), tmp_path / "hf")
    assert read(folder / "config.json") == read(published / "config.json") | {"torch_dtype": "float32"}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    ids = torch.arange(3, 27).view(2, 12)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (published, folder)]
    assert torch.equal(*(model(input_ids=ids).logits for model in models))


def test_a_tokenizer_of_its_own_folder_stays_as_it_came(published: Path, tmp_path: Path) -> None:
    settings = PolicySettings(config=policy_settings("qwen2").config, tokenizer=str(published))
    folder = exported(settings, tmp_path / "hf")
    assert read(folder / "tokenizer_config.json")["authors_note"] == 2
    assert read(folder / "config.json")["model_type"] == "qwen2"


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("qwen2", {"rope_theta": 1e6}, {"rope_theta": 1e6}),
        ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            "gemma3_text",
            {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 5e3},
            {"rope_theta": 1e6, "rope_local_base_freq": 5e3},
        ),
        ("phi3", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}),
        ("qwen3_moe", {"num_experts": 4}, {"num_experts": 4}),
    ],
)
def test_what_is_new_is_written_under_the_names_of_transformers_4(
    tmp_path: Path, kind: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """It takes its defaults for what it does not find: rotary embeddings of another base, without a word."""
    settings = policy_settings(kind, **given)
    folder = exported(settings, tmp_path / "hf")
    config, tokenizer = read(folder / "config.json"), read(folder / "tokenizer_config.json")
    assert {name: config.get(name) for name in expected} == expected
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in tokenizer
    ids = torch.arange(3, 27).view(2, 12)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again(input_ids=ids).logits, load_policy(settings)(input_ids=ids).logits)


def test_names_and_values_of_a_nested_model_are_those_of_its_files(one_rank: None, tmp_path: Path) -> None:
    """Gemma 3 was published with its parts in another order: a reader of its files reads the export."""
    settings = PolicySettings(config=nested_config(), tokenizer=NewTokenizerSettings())
    folder = exported(settings, tmp_path / "hub")
    weights = {older_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stored = PolicySettings(path=str(folder))
    policies = [Sharding(kind=kind).load_policy(stored, 0) for kind in ("single", "fsdp2")]
    assert equal_weights(*(whole_weights(policy) for policy in policies))
    again = save_policy(
        plain_model(policies[0]),
        load_tokenizer(stored),
        tmp_path / "hf",
        whole_weights(policies[0]),
        settings=stored,
    )
    assert equal_weights(load_file(again / "model.safetensors"), weights)


def older_name(name: str) -> str:
    return re.sub(r"^model\.language_model\.", "language_model.model.", name).removeprefix("model.")
