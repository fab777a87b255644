"""The dry run's processes: what the trainer's settings make of devices, strategies and precisions."""

from typing import Any

import pytest

from app.dry_run.layout import Layout, plan_layout
from app.errors import ConfigurationError


@pytest.mark.parametrize(
    ("trainer", "ranks", "kind"),
    [
        ({"accelerator": "cpu"}, 1, "single"),
        ({"accelerator": "cpu", "devices": 4}, 4, "ddp"),
        ({"devices": "2", "num_nodes": 3}, 6, "ddp"),
        ({"devices": [0, 3], "strategy": "fsdp"}, 2, "fsdp"),
        ({"devices": "0,1,2", "strategy": "ddp"}, 3, "ddp"),
    ],
)
def test_ranks_come_from_the_trainers_settings(trainer: dict[str, Any], ranks: int, kind: str) -> None:
    layout = plan_layout(trainer)
    assert (layout.ranks, layout.kind, layout.shards) == (ranks, kind, ranks if kind == "fsdp" else 1)


@pytest.mark.parametrize("devices", ["two", "0", "", "1.5", "0,x"])
def test_devices_that_are_no_number_are_refused(devices: str) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.devices: is a number of devices, a list of them, or auto"):
        plan_layout({"devices": devices})


def test_strategies_of_lightning_are_known_by_their_class() -> None:
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

    assert plan_layout({"devices": 2, "strategy": ModelParallelStrategy()}).kind == "fsdp2"
    offloaded = plan_layout({"devices": 2, "strategy": FSDPStrategy(cpu_offload=True)})
    assert (offloaded.kind, offloaded.offload) == ("fsdp", True)


@pytest.mark.parametrize(
    ("kind", "precision", "gathered", "compute", "mixed"),
    [
        ("single", "32-true", 4, 4, False),
        ("single", "bf16-true", 4, 2, True),
        ("ddp", "bf16-mixed", 4, 2, True),
        ("fsdp2", "bf16-mixed", 4, 2, True),
        ("fsdp2", "bf16-true", 2, 2, False),
        ("fsdp", "bf16-mixed", 2, 2, False),
    ],
)
def test_precisions(kind: Any, precision: str, gathered: int, compute: int, mixed: bool) -> None:
    layout = Layout(2, 1, kind, kind, precision)
    found = (layout.gathered_bytes("float32"), layout.compute_bytes("float32"), layout.is_mixed("float32"))
    assert found == (gathered, compute, mixed)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.precision"):
        plan_layout({"precision": "16-mixed"})


def test_an_offloaded_policy_is_of_fsdp2_alone() -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    assert plan_layout({"devices": 2, "strategy": ModelParallelStrategy()}, policy_offload=True).offload
    with pytest.raises(ConfigurationError, match=r"model\.policy_offload: is of ModelParallelStrategy alone"):
        plan_layout({"devices": 2, "strategy": "ddp"}, policy_offload=True)
    with pytest.raises(ConfigurationError, match="FSDPStrategy has cpu_offload of its own"):
        plan_layout({"devices": 2, "strategy": "fsdp"}, policy_offload=True)


def test_fsdp_on_cpus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.strategy: .* on GPUs only"):
        plan_layout({"devices": 2, "strategy": "fsdp", "accelerator": "cpu"})


@pytest.mark.parametrize("strategy", ["deepspeed_stage_3", "xla_fsdp"])
def test_other_strategies_are_refused(strategy: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.strategy: {strategy} is not offered"):
        plan_layout({"devices": 2, "strategy": strategy})
