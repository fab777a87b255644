"""Adapters: what is trained, what the reference is, what is saved and exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.errors import ConfigurationError
from app.policy.checkpoints import read_weights
from app.policy.lora import LoraSettings, adapters_off, add_adapters, is_adapter
from app.policy.models import PolicySettings, load_policy
from app.policy.sharding.merging import policy_weights
from callbacks import HFExport, IterationCheckpoint
from tests.models import tiny_model
from tests.running import (
    equal_weights,
    fit,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
    weights_of,
)

LORA = LoraSettings(r=4, alpha=8.0)
IDS = torch.arange(3, 27).view(2, 12)


def adapted(**changes: Any) -> Any:
    return make_module({"beta": 0.1}, policy=replace(policy_settings(), lora=replace(LORA, **changes)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A module that learned for 3 iterations, and the folder of its checkpoint and export."""
    folder, module = tmp_path_factory.mktemp("lora"), adapted()
    saving = [IterationCheckpoint(3, folder=str(folder / "checkpoints")), HFExport(str(folder / "hf"))]
    fit(folder, module, make_data(iterations=3), [make_rollouts(), *saving])
    return module, folder


def test_only_adapters_learn(trained: tuple[Any, Path]) -> None:
    start, end = load_policy(adapted().policy_settings, 3).state_dict(), weights_of(trained[0])
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed
    assert all(is_adapter(name) for name in changed)
    assert {id(p) for group in trained[0].trainer.optimizers[0].param_groups for p in group["params"]} == {
        id(p) for name, p in trained[0].policy.named_parameters() if is_adapter(name)
    }


@torch.no_grad()
def test_the_reference_is_the_base_bit_for_bit_and_nothing_is_loaded_twice(trained: tuple[Any, Path]) -> None:
    module, base = trained[0], load_policy(policy_settings(), 3)
    reference = module.reference(input_ids=IDS).logits
    assert torch.equal(reference, base(input_ids=IDS).logits)
    assert not torch.equal(module.policy(input_ids=IDS).logits, reference)
    tokens, plain = module.experience.tokens, make_module({"beta": 0.1})
    plain.configure_model()
    plain.probe()
    mine, theirs = (owner.evaluate_tokens(owner.reference, tokens, 1.0).log_probs for owner in (module, plain))
    assert torch.equal(mine, theirs)
    assert torch.equal(module.experience.ref_log_probs, mine)


def test_the_merged_export_computes_what_the_adapted_policy_does(trained: tuple[Any, Path]) -> None:
    module, folder = trained
    module.policy.eval()
    wanted = module.policy(input_ids=IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, rtol=0, atol=2e-5)
    base = load_policy(policy_settings(), 3)
    adapter = PeftModel.from_pretrained(base, str(folder / "hf/adapter")).eval()
    assert torch.equal(adapter(input_ids=IDS).logits, wanted)


def test_the_engine_gets_merged_weights(trained: tuple[Any, Path]) -> None:
    module, folder = trained
    sent = dict(policy_weights(module.policy))
    merged = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    assert equal_weights(sent, dict(merged.named_parameters(remove_duplicate=False)))


def test_a_checkpoint_holds_the_adapters_alone_and_makes_the_policy_again(trained: tuple[Any, Path]) -> None:
    module, folder = trained
    saved = folder / "checkpoints/iteration-000003.ckpt"
    assert {is_adapter(name) for name in read_weights(str(saved))} == {True}
    again = load_policy(replace(policy_settings(), config=None, tokenizer=None, path=str(saved)), 3)
    assert equal_weights(again.state_dict(), weights_of(module))


def test_dropout_acts_in_training_alone(trained: tuple[Any, Path]) -> None:
    """Old log-probs are those of the policy that sampled, without dropout."""
    module = adapted(dropout=0.5)
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.policy.named_parameters():
            parameter.add_(0.1 if is_adapter(name) else 0.0)
    module.policy.train()
    tokens = trained[0].experience.tokens
    one, other = (module.evaluate_tokens(module.policy, tokens, 1.0).log_probs for _ in range(2))
    assert torch.equal(one, other)
    assert module.policy.training
    assert not torch.equal(*(module.policy(input_ids=IDS).logits for _ in range(2)))


def test_adapters_come_back_after_an_error(trained: tuple[Any, Path]) -> None:
    policy = trained[0].policy
    before = policy(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="stop"), adapters_off(policy):
        raise RuntimeError("stop")
    assert torch.equal(policy(input_ids=IDS).logits, before)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"r": 0}, "r"), ({"alpha": 0.0}, "alpha"), ({"dropout": 1.0}, "dropout"), ({"target_modules": ()}, "target")],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"policy.lora.{key}"):
        LoraSettings(**changes)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="q_prog"):
        load_policy(replace(policy_settings(), lora=LoraSettings(target_modules=("q_prog",))))


def test_of_a_checkpoint_with_adapters_the_reference_has_them_too(trained: tuple[Any, Path], tmp_path: Path) -> None:
    """The initial policy is what was trained before, not its base: the first iteration sees no divergence from it."""
    saved = trained[1] / "checkpoints/iteration-000003.ckpt"
    module = make_module({"beta": 0.1}, policy=PolicySettings(path=str(saved)), seed=11)
    fit(tmp_path, module, make_data(iterations=1), [make_rollouts()])
    assert not any(parameter.requires_grad for parameter in module.reference.parameters())
    assert equal_weights(dict(module.reference.state_dict()), weights_of(trained[0]))
    assert not equal_weights(weights_of(module), weights_of(trained[0]))
    assert torch.equal(module.experience.ref_log_probs, module.experience.old_log_probs)


def test_a_checkpoint_of_adapters_on_new_weights_draws_the_same_ones_again(trained: tuple[Any, Path]) -> None:
    """They are in no file: the checkpoint says by which seed."""
    saved = trained[1] / "checkpoints/iteration-000003.ckpt"
    assert equal_weights(load_policy(PolicySettings(path=str(saved)), 11).state_dict(), weights_of(trained[0]))


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, alpha=16.0), LoraSettings(r=2, alpha=8.0)])
def test_resuming_with_other_adapters_is_refused(
    trained: tuple[Any, Path], tmp_path: Path, lora: LoraSettings | None
) -> None:
    module = make_module(policy=replace(policy_settings(), lora=lora))
    saved = str(trained[1] / "checkpoints/iteration-000003.ckpt")
    trainer = make_trainer(tmp_path, [make_rollouts()])
    with pytest.raises(ConfigurationError, match=r"model\.policy\.lora: .* was trained with \{'r': 4, 'alpha': 8.0"):
        trainer.fit(module, datamodule=make_data(), ckpt_path=saved, weights_only=True)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_adapters_of_experts_are_merged_too(kind: str) -> None:
    """peft wraps a layer's experts once for each of their tensors, one around the other."""
    model = tiny_model(kind)
    expected = set(model.state_dict())
    policy = add_adapters(model, LoraSettings(r=2), seed=0)
    assert any("experts" in name for name, parameter in policy.named_parameters() if parameter.requires_grad)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    plain = tiny_model(kind, seed=9)
    sent = dict(policy_weights(policy))
    assert sent.keys() == expected
    plain.load_state_dict(sent)
    ids = torch.arange(3, 27).view(2, 12)
    torch.testing.assert_close(plain(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_adapters_that_would_untie_a_model_are_refused(layer: str) -> None:
    """Its configuration would still say that embeddings and head are one."""
    settings = LoraSettings(r=2, target_modules=(layer, "q_proj"))
    with pytest.raises(ConfigurationError, match=rf"policy\.lora\.target_modules: .*{layer}.*one tensor"):
        add_adapters(tiny_model("qwen2"), settings, seed=0)
    ids = torch.arange(3, 27).view(2, 12)
    untied = add_adapters(tiny_model("llama"), settings, seed=0)
    assert torch.equal(untied(ids).logits, tiny_model("llama")(ids).logits)
