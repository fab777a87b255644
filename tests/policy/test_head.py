"""Families taken apart: log-probs, entropies and gradients from hidden states are those of the model's own logits."""

from typing import Any

import pytest
import torch

from app.policy.head import HEAD, output_head, why_logits
from app.policy.head_log_probs import OutputHead
from app.policy.logprobs import TokenStatistics, token_log_probs
from app.policy.lora import LoraSettings, WithoutAdapters, add_adapters
from app.policy.packing import build
from app.policy.precision import Autocast
from app.policy.probe import TrainingProbe, share_findings
from tests.families import COMPLETIONS, PROMPTS, family_policy, log_probs_alone, tokenizer

BATCH = build(PROMPTS, COMPLETIONS, pad_id=0)
FAMILIES: dict[str, tuple[dict[str, Any], OutputHead]] = {
    "llama": ({"tie_word_embeddings": False}, OutputHead()),
    "qwen2": ({"tie_word_embeddings": True}, OutputHead()),
    "qwen3": ({}, OutputHead()),
    "gemma2": ({}, OutputHead(softcap=30.0)),
    "granite": ({"logits_scaling": 8.0}, OutputHead(1 / 8)),
    "cohere": ({"logit_scale": 0.3}, OutputHead(0.3)),
    "falcon_h1": ({"lm_head_multiplier": 0.4}, OutputHead(0.4)),
    "phi": ({}, OutputHead()),  # its head has a bias
    "gpt2": ({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, OutputHead()),
    "opt": ({"dropout": 0.0, "attention_dropout": 0.0}, OutputHead()),
    "rwkv": ({}, OutputHead()),  # padded on the right
}


def probed(policy: Any, dtype: torch.dtype = torch.float32) -> Any:
    TrainingProbe(tokenizer(), dtype, torch.device("cpu")).check(policy)
    return policy


def evaluated(policy: Any, **changes: Any) -> tuple[TokenStatistics, dict[str, torch.Tensor]]:
    """Of the batch, with the gradient of log-probs and entropies that are weighted at random."""
    found = token_log_probs(policy, BATCH, **{"temperature": 0.7, "entropy_gradient": True} | changes)
    generator = torch.Generator().manual_seed(0)
    outer = torch.randn(2, *found.log_probs.shape, generator=generator)
    loss = (found.log_probs * outer[0]).sum()
    if found.entropy.requires_grad:
        loss = loss + (found.entropy * outer[1]).sum()
    policy.zero_grad()
    loss.backward()
    return found, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def from_logits(policy: Any, **changes: Any) -> tuple[TokenStatistics, dict[str, torch.Tensor]]:
    head = output_head(policy)
    delattr(policy, HEAD)
    try:
        return evaluated(policy, **changes)
    finally:
        setattr(policy, HEAD, head)


def same(policy: Any, precision: float = 1e-5, **changes: Any) -> None:
    """Both ways agree; a gradient relative to the largest of all, for some are 0 but for rounding."""
    assert isinstance(output_head(policy), OutputHead), why_logits(policy)
    (ours, own), (theirs, wanted) = evaluated(policy, **changes), from_logits(policy, **changes)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=precision, rtol=precision)
    torch.testing.assert_close(ours.entropy, theirs.entropy, atol=precision, rtol=precision)
    assert own.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in own.items():
        assert (gradient - wanted[name]).norm() <= precision * largest, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_familys_log_probs_and_gradients_are_those_of_its_logits(kind: str) -> None:
    changes, head = FAMILIES[kind]
    policy = probed(family_policy(kind, **changes)).train()
    found = output_head(policy)
    assert found is not None, why_logits(policy)
    assert found.softcap == head.softcap
    assert found.scale == pytest.approx(head.scale, rel=1e-7)
    same(policy)
    same(policy, entropy_gradient=False, with_entropy=True, temperature=1.0)


def test_gradient_checkpointing_changes_nothing() -> None:
    policy = probed(family_policy("qwen2", tie_word_embeddings=True)).train()
    _, plain = from_logits(policy)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, own = evaluated(policy)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "mixed"])
def test_low_precision_is_the_logits_own(precision: str) -> None:
    """Values are those of the same products; gradients are rounded at other places."""
    policy = family_policy("llama")
    if precision == "mixed":
        Autocast("cpu").attach(policy)
    else:
        policy.bfloat16()
    probed(policy, torch.bfloat16).train()
    assert output_head(policy) == OutputHead()
    (ours, own), (theirs, wanted) = evaluated(policy), from_logits(policy)
    assert ours.log_probs.dtype == torch.float32
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=1e-5, rtol=0)
    assert all((own[name] - wanted[name]).norm() < 0.02 * wanted[name].norm() + 1e-3 for name in wanted)
    assert {gradient.dtype for gradient in own.values()} == {policy.dtype}


def test_adapters_and_the_reference_behind_them() -> None:
    policy = add_adapters(family_policy("llama"), LoraSettings(r=2, target_modules=["q_proj", "up_proj"]), seed=0)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    probed(policy)
    same(policy)
    reference = WithoutAdapters(policy)
    share_findings(policy, reference)
    with torch.no_grad():
        behind, alone = token_log_probs(reference, BATCH).log_probs, token_log_probs(family_policy("llama"), BATCH)
        assert (behind - token_log_probs(policy, BATCH).log_probs).abs().max() > 1e-3
    torch.testing.assert_close(behind, alone.log_probs, atol=1e-5, rtol=1e-5)


def adapted_head(policy: Any) -> Any:
    return add_adapters(policy, LoraSettings(r=2, target_modules=["lm_head"]), seed=0)


def hooked_head(policy: Any) -> Any:
    policy.lm_head.register_forward_hook(lambda module, given, made: made * 2)
    return policy


def suppressed_token(policy: Any) -> Any:
    def suppress(module: Any, given: Any, made: Any) -> Any:
        made.logits[..., 5] -= 3
        return made

    policy.register_forward_hook(suppress)
    return policy


def other_product(policy: Any) -> Any:
    own = policy.lm_head.forward
    policy.lm_head.forward = lambda hidden: own(hidden) + 0.1 * hidden.norm(dim=-1, keepdim=True) * own(hidden).sin()
    return policy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapted_head, "no plain linear layer but Linear"),
        (hooked_head, "hooked onto its output head"),
        (other_product, "hooked onto its output head"),
        (suppressed_token, "more than its output head's product"),
    ],
)
def test_what_is_more_than_a_product_falls_back_to_logits_and_says_why(change: Any, reason: str) -> None:
    policy = probed(change(family_policy("llama", tie_word_embeddings=False)))
    assert output_head(policy) is None
    assert reason in (why_logits(policy) or "")
    with torch.no_grad():
        found = token_log_probs(policy, BATCH).log_probs
    for row, prompt, completion in zip(found, PROMPTS, COMPLETIONS, strict=True):
        torch.testing.assert_close(row[: len(completion)], log_probs_alone(policy, prompt, completion))


def test_a_head_that_is_not_what_it_seems_is_found_by_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the head was measured right, and log-probs are wrong all the same."""
    monkeypatch.setattr("app.policy.probe.take_apart", lambda *_: OutputHead(scale=1.5))
    policy = probed(family_policy("llama"))
    assert output_head(policy) is None
    assert "nats from its own" in (why_logits(policy) or "")
