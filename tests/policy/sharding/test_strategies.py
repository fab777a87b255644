"""Sharding in one process: precision, refusals, numbering. What needs two ranks is in ``tests/distributed``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import ConfigurationError
from app.policy.lora import LoraSettings
from app.policy.sharding.strategies import Sharding
from tests.modules.test_grpo_lambda import Recorder
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts, policy_settings, weights_of

IDS = torch.arange(3, 27).view(2, 12)


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
    assert recorder.metrics[0]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
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


def test_an_offloaded_reference_changes_nothing(tmp_path: Path) -> None:
    """On a CPU there is no other memory to wait in; the option is accepted all the same."""
    runs = [make_module({"beta": 0.1}, reference_offload=offload) for offload in (False, True)]
    for module in runs:
        fit(tmp_path, module, make_data(iterations=2), [make_rollouts()])
    assert equal_weights(*(weights_of(module) for module in runs))


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
