"""The transformers engine on families whose caches, states or padding are of another kind."""

import pytest
import torch

from app.engines.engine import GenerationRequest, SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from tests.families import PROMPTS, family_policy, log_probs_alone, owner_of


def generated(kind: str) -> tuple[TransformersEngine, float]:
    """The started engine, and how far what it draws is from the rows evaluated whole."""
    policy, engine = family_policy(kind), TransformersEngine()
    engine.start(owner_of(policy))
    requests = [
        GenerationRequest(prompt, 3, seed, SamplingSettings(temperature=1.0, max_new_tokens=12), ())
        for seed, prompt in enumerate(PROMPTS)
    ]
    distances = [
        (torch.tensor(completion.log_probs) - log_probs_alone(policy, request.prompt_ids, completion.token_ids)).abs()
        for request, group in zip(requests, engine.generate(requests), strict=True)
        for completion in group
    ]
    return engine, float(torch.stack(distances).max())


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "bart"])
def test_families_that_bear_no_padding_share_batches_by_length(kind: str) -> None:
    engine, distance = generated(kind)
    assert not engine.pads
    assert distance < 1e-3


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_next", "mamba2", "bamba"])
def test_families_that_bear_padding_share_batches(kind: str) -> None:
    engine, distance = generated(kind)
    assert engine.pads
    assert distance < 1e-3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("rwkv", "rwkv keeps no cache"),
        ("xlstm", r"xlstm \(xLSTMForCausalLM\) cannot be used: of a few tokens it raises AttributeError"),
        ("recurrent_gemma", "(what it draws with a cache differs by|recurrent_gemma .* it raises ValueError)"),
        ("bert", "what it draws with a cache differs by"),
    ],
)
def test_families_that_cannot_generate_are_refused(kind: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^engine: .*{reason}"):
        TransformersEngine().start(owner_of(family_policy(kind)))


def test_a_context_of_few_tokens_is_no_reason_to_refuse() -> None:
    engine = TransformersEngine()
    engine.start(owner_of(family_policy("llama", max_position_embeddings=8)))
    assert engine.pads
