"""Attention over a cache without gaps draws what transformers' own attention and cache draw."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.engines.engine import Completion
from app.engines.streamed_attention import LATEST, NotStreamedError, StreamedLayer, attend, streamed_attention
from app.engines.transformers_engine import TransformersEngine
from tests.engines.test_transformers_engine import PROMPTS, engine_of, flat, requests_of
from tests.families import family_policy, owner_of
from tests.models import tiny_model


def drawn(engine: TransformersEngine, streams: bool, **settings: object) -> list[Completion]:
    engine.streams = streams
    return flat(engine.generate(requests_of(n=6, **settings)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"num_key_value_heads": 2}),
        ("llama", {"num_key_value_heads": 4}),
        ("gpt_neox", {}),
    ],
)
@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 6, 7], [8, 9, 10]]], ids=["padded", "of one length"])
def test_tokens_are_the_same_and_log_probs_up_to_rounding(
    kind: str, changes: dict[str, int], dtype: torch.dtype, prompts: list[list[int]]
) -> None:
    """Of rows that end at many places and are longer than what lies apart before it settles."""
    policy = tiny_model(kind, **changes).to(dtype)
    engine = engine_of(policy)
    assert engine.streams
    new, own = (drawn(engine, streams, prompts=prompts) for streams in (True, False))
    assert [row.token_ids for row in new] == [row.token_ids for row in own]
    lengths = {len(row.token_ids) for row in own}
    assert len(lengths) > 2
    assert max(lengths) > 2 * LATEST
    pairs = zip(new, own, strict=True)
    worst = max(abs(a - b) for one, other in pairs for a, b in zip(one.log_probs, other.log_probs, strict=True))
    assert worst < 1e-5  # log-probs are float32 whatever the policy is


@pytest.mark.parametrize(
    "changes",
    [{"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, {"attn": "eager"}, {"half": 1}],
)
def test_what_it_is_not_for_keeps_its_own_cache(changes: dict[str, object]) -> None:
    attention, half = changes.pop("attn", "sdpa"), changes.pop("half", 0)
    policy = tiny_model(**changes)
    policy.set_attn_implementation(attention)
    assert not engine_of(policy.bfloat16() if half else policy).streams


def test_a_family_that_attends_in_its_own_way_is_found_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """Falcon's attention does not ask transformers' table: nobody would have read what its cache was given."""
    engine, policy = TransformersEngine(), family_policy("falcon")
    with caplog.at_level(logging.INFO, "app.engines.transformers_engine"):
        engine.start(owner_of(policy))
    assert not engine.streams
    assert "falcon (FalconForCausalLM) keeps transformers' attention" in caplog.text


def test_keys_that_the_model_has_changed_are_refused() -> None:
    layer, states = StreamedLayer(), torch.randn(2, 2, 1, 4)
    layer.update(states, states)
    layer.reorder_cache(torch.tensor([0, 1]))
    key, value = layer.update(states, states)
    with pytest.raises(NotStreamedError, match="keys of its cache alone"):
        attend(SimpleNamespace(), states, key + 0, value, None)
    with pytest.raises(NotStreamedError, match="does not ask transformers' table"):
        layer.update(states, states)


def test_transformers_tables_are_as_before_whatever_happens() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def interrupted() -> None:
        with streamed_attention():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attend
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask
