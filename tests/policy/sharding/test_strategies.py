"""Sharding in one process: precision, refusals, numbering. What needs two ranks is in ``tests/distributed``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import ConfigurationError
from app.policy.lora import LoraSettings
from app.policy.models import empty_policy, finished, load_policy
from app.policy.optimizers import OptimizerSettings, build_optimizer, check_optimizer, number_by_model
from app.policy.sharding.filling import draw
from app.policy.sharding.strategies import Sharding, clip_gradients, plain_model, trained_parameters, whole_parameters
from tests.modules.test_grpo_lambda import Recorder
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts, policy_settings, weights_of

IDS = torch.arange(3, 27).view(2, 12)


def parts(policy: Any) -> Any:
    return build_optimizer(*trained_parameters(policy), OptimizerSettings(lr=1e-2, weight_decay=0.1))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_is_the_policys_alone(tmp_path: Path, precision: str) -> None:
    """Master weights, log-probs, traces and loss stay float32; the first update sees no ratio but 1."""
    module, recorder = make_module({"beta": 0.1}), Recorder()
    fit(tmp_path, module, make_data(iterations=1), [make_rollouts(), recorder], precision=precision)
    assert {parameter.dtype for parameter in module.policy.parameters()} == {torch.float32}
    assert module.policy(input_ids=IDS).logits.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    (experience,) = recorder.experiences
    for tensor in (experience.old_log_probs, experience.ref_log_probs, module.last_log_ratio):
        assert tensor.dtype == torch.float32
    assert recorder.metrics[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    exact = make_module()
    exact.configure_model()
    log_probs = exact.evaluate_tokens(exact.policy, experience.tokens, 1.0).log_probs
    assert 0 < (log_probs - experience.old_log_probs).abs().max() < 0.3


def test_autocast_ends_where_the_forward_pass_fails() -> None:
    policy = Sharding(precision="bf16-mixed").load_policy(policy_settings(), 0)
    with pytest.raises(IndexError):
        policy(input_ids=torch.tensor([[10_000]]))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["16-mixed", "64-true"])
def test_other_precisions_are_refused(precision: str) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.precision.*bf16-mixed"):
        Sharding(precision=precision)


def test_master_weights_in_bfloat16_are_refused_but_not_under_adapters() -> None:
    settings, low = replace(policy_settings(), dtype="bfloat16"), Sharding(precision="bf16-true")
    with pytest.raises(ConfigurationError, match=r"policy\.dtype"):
        low.load_policy(settings, 0)
    adapted = low.load_policy(replace(settings, lora=LoraSettings(r=2)), 0)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)])
def test_values_are_drawn_as_transformers_draws_them(kind: str, lora: LoraSettings | None) -> None:
    settings = replace(policy_settings(kind), lora=lora)
    before, drawn = torch.get_rng_state(), {}
    model = finished(empty_policy(settings), settings, 3)
    draw(model.get_base_model() if lora else model, 3, lambda name, whole: drawn.update({name: whole.clone()}))
    plain = dict(load_policy(policy_settings(kind), 3).named_parameters())
    assert equal_weights(plain, {name.replace(".base_layer", ""): whole for name, whole in drawn.items()})
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_offloaded_reference_changes_nothing(tmp_path: Path) -> None:
    """On a CPU there is no other memory to wait in; the option is accepted all the same."""
    runs = [make_module({"beta": 0.1}, reference_offload=offload) for offload in (False, True)]
    for module in runs:
        fit(tmp_path, module, make_data(iterations=2), [make_rollouts()])
    assert equal_weights(*(weights_of(module) for module in runs))


def test_states_numbered_by_the_model_load_like_torchs_own() -> None:
    policy = load_policy(policy_settings(), 0)
    optimizer = parts(policy)
    policy(input_ids=IDS).logits.square().mean().backward()
    optimizer.step()
    state = optimizer.state_dict()
    numbered = number_by_model(state, optimizer, policy)
    names = [name for name, _ in policy.named_parameters()]
    shapes = dict(policy.named_parameters())
    assert all(value["exp_avg"].shape == shapes[names[number]].shape for number, value in numbered["state"].items())
    assert numbered["param_groups"] != state["param_groups"]
    again = parts(policy)
    again.load_state_dict(numbered)
    for mine, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


@pytest.mark.parametrize("limit", [None, 0.1])
def test_clipping_returns_the_norm_before(limit: float | None) -> None:
    policy = load_policy(policy_settings(), 0)
    policy(input_ids=IDS).logits.square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert float(clip_gradients(policy, limit)) == pytest.approx(float(gradient.norm()), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(min(limit or 1e9, float(gradient.norm())), rel=1e-3)


def test_vectors_are_not_decayed() -> None:
    matrices, vectors = trained_parameters(load_policy(policy_settings("qwen2"), 0))
    assert all(parameter.dim() > 1 for parameter in matrices)
    assert all(parameter.dim() == 1 for parameter in vectors)
    assert [group["weight_decay"] for group in parts(load_policy(policy_settings(), 0)).param_groups] == [0.1, 0.0]


def test_whole_models_are_whole_already() -> None:
    policy = load_policy(policy_settings(), 0)
    with whole_parameters(policy):
        assert policy(input_ids=IDS).logits.shape[:2] == IDS.shape
    plain = plain_model(policy)
    assert all(parameter.is_meta for parameter in plain.parameters())
    assert plain.config.to_dict() == policy.config.to_dict()


def test_8_bit_optimisers_are_refused_on_shards() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.optimizer\.name.*whole parameters"):
        check_optimizer(OptimizerSettings(name="adamw8bit"), sharded=True)


def test_adapters_beside_a_low_base_are_refused_in_flat_parameters() -> None:
    settings = replace(policy_settings(), dtype="bfloat16", lora=LoraSettings(r=2))
    Sharding(kind="fsdp2").check_policy(settings)
    Sharding(kind="fsdp").check_policy(replace(settings, dtype="float32"))
    with pytest.raises(ConfigurationError, match=r"policy\.dtype: is bfloat16 and adapters are float32"):
        Sharding(kind="fsdp").check_policy(settings)


# ── offloading ──


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("single", "use fsdp2_offload.yaml"),
        ("ddp", "use fsdp2_offload.yaml"),
        ("fsdp", "FSDPStrategy has cpu_offload of its own"),
    ],
)
def test_only_fsdp2_offloads_the_policy(kind: Any, instead: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.policy_offload: .*{instead}"):
        Sharding(kind=kind, offload=True)


def test_one_process_refuses_to_offload_before_anything_loads(tmp_path: Path) -> None:
    module = make_module(policy_offload=True)
    with pytest.raises(ConfigurationError, match=r"model\.policy_offload"):
        fit(tmp_path, module, make_data(iterations=1), [make_rollouts()])
    assert not hasattr(module, "policy")


@pytest.mark.parametrize(
    ("backend", "enough"), [("nccl", False), ("cuda:nccl,cpu:gloo", True), ("gloo", True), ("cpu:gloo", True)]
)
def test_offloading_needs_a_backend_for_host_memory(
    monkeypatch: pytest.MonkeyPatch, backend: str, enough: bool
) -> None:
    from torch.distributed.distributed_c10d import Backend, BackendConfig

    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: str(BackendConfig(Backend(backend))))
    Sharding(kind="fsdp2").check_backend()
    offloaded = Sharding(kind="fsdp2", offload=True)
    if enough:
        offloaded.check_backend()
        return
    with pytest.raises(ConfigurationError, match="cuda:nccl,cpu:gloo"):
        offloaded.check_backend()


@pytest.mark.parametrize("offload", [True, False])
def test_a_policy_in_host_memory_stays_there_when_the_module_moves(offload: bool) -> None:
    """The meta device stands for a GPU here: Lightning moves the whole module to it."""
    module = make_module()
    module.configure_model()
    module.register_buffer("other", torch.zeros(1))
    module.sharding = Sharding(kind="fsdp2", offload=offload)
    assert module.to("meta") is module
    assert module.device.type == "meta"
    assert module.other.is_meta
    assert {parameter.is_meta for parameter in module.policy.parameters()} == {not offload}
    assert "policy" in dict(module.named_children())
