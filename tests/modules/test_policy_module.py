"""What the module makes of the trainer's strategy and precision."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.fsdp import MixedPrecision

from app.errors import ConfigurationError
from app.policy.lora import LoraSettings
from app.policy.sharding.strategies import Sharding
from modules.policy_module import _check_mesh, _fsdp_options, _kind
from tests.running import fit, make_data, make_module, make_rollouts, policy_settings


@pytest.mark.parametrize(
    ("precision", "dtype", "lora", "expected"),
    [
        ("32-true", "float32", None, torch.float32),
        ("32-true", "bfloat16", None, torch.bfloat16),
        ("32-true", "bfloat16", LoraSettings(r=2), torch.bfloat16),
        ("bf16-mixed", "float32", None, torch.bfloat16),
        ("bf16-true", "float32", None, torch.bfloat16),
    ],
)
def test_the_compute_dtype_is_that_of_the_policys_logits(
    tmp_path: Path, precision: str, dtype: Any, lora: LoraSettings | None, expected: torch.dtype
) -> None:
    module = make_module(policy=replace(policy_settings(), dtype=dtype, lora=lora))
    fit(tmp_path, module, make_data(iterations=1), [make_rollouts()], precision=precision)
    assert module.compute_dtype == expected
    assert module.policy(input_ids=torch.tensor([[1, 2]])).logits.dtype == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"mixed_precision": MixedPrecision()}, "mixed_precision"),
        ({"auto_wrap_policy": {torch.nn.Linear}}, "auto_wrap_policy"),
        ({"activation_checkpointing_policy": {torch.nn.Linear}}, "activation_checkpointing_policy"),
        ({"use_orig_params": False}, "use_orig_params"),
    ],
)
def test_what_would_be_ignored_of_an_fsdp_strategy_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.strategy\.init_args\.{key}: leave it out"):
        _fsdp_options(FSDPStrategy(**settings))


def test_the_rest_of_an_fsdp_strategy_is_handed_on() -> None:
    options = dict(
        _fsdp_options(FSDPStrategy(sharding_strategy="SHARD_GRAD_OP", cpu_offload=True, forward_prefetch=True))
    )
    assert options["sharding_strategy"].name == "SHARD_GRAD_OP"
    assert options["cpu_offload"].offload_params
    assert options["forward_prefetch"] is True


@pytest.mark.parametrize(("size", "refused"), [("auto", False), (1, False), (4, False), (2, True)])
def test_tensor_parallelism_is_refused(size: Any, refused: bool) -> None:
    strategy = ModelParallelStrategy(tensor_parallel_size=size)
    strategy.parallel_devices = [torch.device("cpu")] * 4
    if size == "auto":  # as Lightning resolves it before the module is set up
        strategy._tensor_parallel_size = strategy.num_processes
    if not refused:
        return _check_mesh(strategy)
    with pytest.raises(ConfigurationError, match="tensor parallelism is not offered"):
        _check_mesh(strategy)
    return None


class NewStrategy(Strategy):
    """One that nobody here has heard of."""


class DeepSpeed(DeepSpeedStrategy):
    def __init__(self) -> None:
        """Without its library."""


@pytest.mark.parametrize("strategy", [NewStrategy, DeepSpeed])
def test_strategies_that_are_not_offered_are_refused(strategy: type[Strategy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "__abstractmethods__", frozenset())
    with pytest.raises(ConfigurationError, match=rf"trainer\.strategy: {strategy.__name__} is not offered"):
        _kind(strategy())


def test_strategies_are_known_by_their_class() -> None:
    strategies = (SingleDeviceStrategy(), DDPStrategy(), FSDPStrategy(), ModelParallelStrategy())
    assert [_kind(strategy) for strategy in strategies] == ["single", "ddp", "fsdp", "fsdp2"]


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [(FSDPStrategy(cpu_offload=True), True), (FSDPStrategy(), False), (ModelParallelStrategy(), False)],
)
def test_gradients_in_host_memory_are_exchanged_once_a_step(strategy: Strategy, waits: bool) -> None:
    """FSDP overwrites there what an earlier micro-batch exchanged (FullyShardedDataParallel's own documentation)."""
    order: list[str] = []

    @contextlib.contextmanager
    def no_sync() -> Iterator[None]:
        order.append("no_sync")
        yield

    module = make_module()
    module.policy = SimpleNamespace(no_sync=no_sync)
    module._trainer = SimpleNamespace(strategy=strategy)
    module.manual_backward = lambda loss: order.append("backward")
    for last in (False, False, True):
        module.accumulate(torch.zeros(()), last)
    assert order == (["no_sync", "backward", "no_sync", "backward", "backward"] if waits else ["backward"] * 3)


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
