"""Families that mean something else by padding, later tokens or train mode: refused in a line, or made right."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import ConfigurationError
from app.policy.context import context_length, rope_switch
from app.policy.dropout import switch_off_dropout
from app.policy.logprobs import token_log_probs
from app.policy.lora import LoraSettings, WithoutAdapters, add_adapters
from app.policy.packing import build
from app.policy.probe import ProbeFailure, TrainingProbe, share_findings
from tests.families import COMPLETIONS, PROMPTS, family_policy, family_settings, log_probs_alone, tokenizer
from tests.running import fit, make_data, make_module, make_rollouts, policy_settings

CPU = torch.device("cpu")
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64} | {
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
}


def probe(**changes: object) -> TrainingProbe:
    return TrainingProbe(tokenizer(), **({"dtype": torch.float32, "device": CPU} | changes))


def distances(policy: torch.nn.Module) -> list[float]:
    """Of a ragged batch's log-probs from those of its rows alone."""
    with torch.no_grad():
        rows = token_log_probs(policy, build(PROMPTS, COMPLETIONS, pad_id=0)).log_probs
    pairs = zip(rows, PROMPTS, COMPLETIONS, strict=True)
    return [float((row[: len(ids)] - log_probs_alone(policy, prompt, ids)).abs().max()) for row, prompt, ids in pairs]


@pytest.mark.parametrize("kind", ["rwkv", "xlstm", "bart"])
def test_what_is_wrong_under_left_padding_is_padded_on_the_right(kind: str) -> None:
    policy = family_policy(kind)
    switch_off_dropout(policy)
    assert max(distances(policy)) > 1e-3
    assert probe().check(policy)["left padding"] > 1e-3
    assert max(distances(policy)) < 1e-4


def test_the_reference_is_padded_as_the_policy_is() -> None:
    policy, reference = family_policy("rwkv"), family_policy("rwkv")
    probe().check(policy)
    share_findings(policy, reference)
    assert max(distances(reference)) < 1e-4


def test_adapters_and_the_reference_behind_them_are_padded_alike() -> None:
    policy = add_adapters(family_policy("rwkv"), LoraSettings(target_modules=["key"]), seed=0).eval()
    reference = WithoutAdapters(policy)
    probe().check(policy)
    share_findings(policy, reference)
    batch = build(PROMPTS, COMPLETIONS, pad_id=0)
    with torch.no_grad():
        assert torch.equal(token_log_probs(policy, batch).log_probs, token_log_probs(reference, batch).log_probs)


def test_gradients_of_rows_padded_on_the_right_are_those_of_the_rows_alone() -> None:
    policy = family_policy("rwkv")
    probe().check(policy)
    token_log_probs(policy, build(PROMPTS, COMPLETIONS, pad_id=0)).log_probs.sum().backward()
    found = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad()
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        token_log_probs(policy, build([prompt], [completion], pad_id=0)).log_probs.sum().backward()
    wanted = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert found
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bert", {}, "tokens that come later change .* no causal language model"),
        ("roberta", {}, "tokens that come later"),
        ("phimoe", {"router_jitter_noise": 0.5}, "in train mode its log-probs differ"),
        ("gpt2", {}, "in train mode its log-probs differ"),
    ],
)
def test_what_cannot_be_made_right_is_refused_by_name(kind: str, changes: dict, reason: str) -> None:
    with pytest.raises(ProbeFailure, match=rf"^model\.policy: {kind} \(\w+\) is not offered: {reason}"):
        probe().check(family_policy(kind, **changes))


def test_dropout_is_no_matter_of_the_supervised_stage() -> None:
    found = probe(train_mode=False, layouts=("right",)).check(family_policy("gpt2"))
    assert set(found) == {"causality", "right padding"}


def test_what_a_model_raises_over_plain_tokens_is_one_line() -> None:
    policy = family_policy("llama")
    policy.model.layers[1].self_attn.q_proj = torch.nn.Linear(3, 3)
    said = r"llama \(LlamaForCausalLM\) cannot be used: .* raises RuntimeError: .*mat1"  # torch 2.15: "addmm: mat1"
    with pytest.raises(ProbeFailure, match=said):
        probe().check(policy)


def test_weights_that_overflow_by_themselves_say_nothing_of_the_family() -> None:
    """The run ends where their numbers arise, by their own name; a padded row alone that overflows is the family's."""
    policy = family_policy("llama")
    overflow = policy.lm_head.register_forward_hook(lambda module, given, made: made * float("nan"))
    assert probe().check(policy) == {}
    overflow.remove()
    policy.lm_head.register_forward_hook(lambda module, given, made: made * (1.0 if len(made) == 1 else float("nan")))
    with pytest.raises(ProbeFailure, match="padding beside a row changes its tokens' log-probs by nan nats"):
        probe().check(policy)


def test_the_random_state_modes_and_gradients_stay_and_differences_are_told(caplog: pytest.LogCaptureFixture) -> None:
    policy = family_policy("mixtral").train()
    policy.model.layers[0].eval()
    modes, state = [module.training for module in policy.modules()], torch.get_rng_state()
    with caplog.at_level(logging.DEBUG, logger="app.policy.probe"):
        probe().check(policy)
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert "mixtral (MixtralForCausalLM), differences" in caplog.text


def test_fit_refuses_before_anything_is_generated(tmp_path: Path) -> None:
    module = make_module(policy=family_settings("bert"))
    with pytest.raises(ConfigurationError, match="no causal language model"):
        fit(tmp_path, module, make_data(), [make_rollouts()])
    assert module.experience is None


def test_a_run_that_needs_whole_logits_says_so(tmp_path: Path) -> None:
    adapted = replace(policy_settings(), lora=LoraSettings(r=2, target_modules=("lm_head",)))
    with pytest.warns(UserWarning, match=r"llama .*: log-probs are made of whole logits.*no plain linear layer"):
        trainer = fit(tmp_path, make_module(policy=adapted), make_data(1, 2), [make_rollouts()])
    assert trainer.callback_metrics["policy/updates/whole_logits"] == 1
    trainer = fit(tmp_path, make_module(), make_data(1, 2), [make_rollouts()])
    assert trainer.callback_metrics["policy/updates/whole_logits"] == 0


# ── rotary embeddings that change in mid-row ──


def test_rows_end_where_rotary_embeddings_change() -> None:
    policy = family_policy("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=64)
    assert rope_switch(policy.config) == 64
    assert context_length(policy.config) == 64
    short, long = [[5, 6, 7]], [list(range(5, 70))]
    with torch.no_grad():  # the fault that the limit keeps out: a neighbour that is longer changes a row
        alone = token_log_probs(policy, build(short, [[8, 9, 10]], 0)).log_probs
        beside = token_log_probs(policy, build(short + long, [[8, 9, 10], [8, 9, 10]], 0)).log_probs
    assert (alone[0] - beside[0]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mamba2"])
def test_other_families_end_at_their_context(kind: str) -> None:
    config = family_policy(kind).config
    assert rope_switch(config) is None
    assert context_length(config) == getattr(config, "max_position_embeddings", None)
