"""Configurations as users bring them: keys of published files, of inner configurations, and slips of the pen."""

from typing import Any

import pytest

from app.errors import ConfigurationError
from app.policy.models import load_policy
from app.policy.new_config import new_config
from app.policy.settings import PolicySettings
from app.policy.tokenizers import NewTokenizerSettings, new_tokenizer
from tests.models import nested_config


@pytest.mark.parametrize(
    ("kind", "key", "value", "found"),
    [
        ("qwen3_moe", "head_dim", 16, lambda config: config.head_dim),
        ("qwen3_moe", "torch_dtype", "bfloat16", lambda config: str(config.dtype).removeprefix("torch.")),
        ("phi3", "partial_rotary_factor", 0.75, lambda config: config.rope_parameters["partial_rotary_factor"]),
        (
            "gemma3_text",
            "rope_local_base_freq",
            5000.0,
            lambda config: config.rope_parameters["sliding_attention"]["rope_theta"],
        ),
        ("llama", "rope_theta", 5e5, lambda config: config.rope_parameters["rope_theta"]),
        ("gpt_neox", "rotary_emb_base", 5000, lambda config: config.rope_parameters["rope_theta"]),
    ],
)
def test_keys_of_published_files_are_taken_and_have_their_effect(kind: str, key: str, value: Any, found: Any) -> None:
    """No attribute of the family's configuration bears their names in transformers 5."""
    config = new_config({"model_type": kind, key: value})
    assert found(config) == value


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "qwen3_moe", "head_dims": 16}, r"policy\.config\.head_dims: unknown name"),
        ({"model_type": "phi3", "partial_rotary_factr": 0.5}, r"policy\.config\.partial_rotary_factr: unknown name"),
        (
            {"model_type": "gemma3", "text_config": {"hiden_size": 8}},
            r"policy\.config\.text_config\.hiden_size: unknown name 'hiden_size'; did you mean 'hidden_size'",
        ),
    ],
)
def test_other_keys_are_refused_in_inner_configurations_too(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        new_config(entries)


@pytest.mark.parametrize("kind", ["codegen", "rwkv", "gpt_neox", "fuyu", "modernbert-decoder"])
def test_a_family_without_keys_for_special_tokens_is_not_asked_for_them(kind: str) -> None:
    tokenizer = new_tokenizer(NewTokenizerSettings())
    config = new_config({"model_type": kind}, tokenizer)
    assert config.get_text_config().vocab_size >= len(tokenizer)


def test_the_vocabulary_of_an_inner_configuration_is_the_tokenizers() -> None:
    settings = PolicySettings(config=nested_config(), tokenizer=NewTokenizerSettings())
    policy, tokenizer = load_policy(settings), new_tokenizer(NewTokenizerSettings())
    assert policy.get_input_embeddings().num_embeddings == len(tokenizer)
    assert policy.config.get_text_config().eos_token_id == tokenizer.eos_token_id
