"""How many processes a run would have and what each of them would hold, read from the trainer's settings alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from app.errors import ConfigurationError
from app.policy.sharding.strategies import Kind, Sharding

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Layout:
    """The processes of a run, and the sizes of numbers in them as :mod:`app.policy.sharding.strategies` makes them.

    Attributes:
        devices: ranks on each machine.
        nodes: machines.
        kind: "single" and "ddp" hold everything on every rank, "fsdp" and "fsdp2" divide it by the ranks.
        strategy: its name, for the print-out.
        precision: Lightning's name of it.
        offload: whether parameters, gradients and optimiser state are in host memory.
        notes: what was assumed.
    """

    devices: int
    nodes: int
    kind: Kind
    strategy: str
    precision: str
    offload: bool = False
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        return self.devices * self.nodes

    @property
    def sharded(self) -> bool:
        return self.kind in ("fsdp", "fsdp2")

    @property
    def shards(self) -> int:
        """Parts that parameters, gradients and optimiser state are cut into."""
        return self.ranks if self.sharded else 1

    def gathered_bytes(self, dtype: str) -> int:
        """Bytes of a parameter of a policy of ``dtype`` as a forward pass finds it."""
        low = self.precision == "bf16-true" or (self.precision == "bf16-mixed" and self.kind == "fsdp")
        return 2 if self.sharded and low else BYTES[dtype]

    def compute_bytes(self, dtype: str) -> int:
        """Bytes of a product of matrices."""
        return BYTES[dtype] if self.precision == "32-true" else 2

    def is_mixed(self, dtype: str) -> bool:
        """Whether autocast runs: sums and norms are then float32, products bfloat16."""
        return self.compute_bytes(dtype) < self.gathered_bytes(dtype)


def plan_layout(trainer: Mapping[str, Any], policy_offload: bool = False) -> Layout:
    """The layout that Lightning would choose; starts no process and touches no device.

    Raises:
        ConfigurationError: no device is asked for; a precision that is not offered; a strategy that cannot run there,
            or cannot offload the policy.
    """
    accelerator = str(trainer.get("accelerator") or "auto")
    devices, notes = _devices(trainer.get("devices", "auto"), accelerator)
    nodes = int(trainer.get("num_nodes") or 1)
    if devices < 1 or nodes < 1:
        raise ConfigurationError("a run needs at least one device and one node", key="trainer.devices")
    strategy, precision = trainer.get("strategy") or "auto", _precision(trainer.get("precision"))
    name, kind = _strategy(strategy, devices * nodes)
    Sharding(kind=kind, precision=precision, offload=policy_offload)  # refuses what does not go together
    if kind == "fsdp" and accelerator == "cpu":
        raise ConfigurationError(
            "Lightning runs FSDPStrategy on GPUs only; configs/strategy/fsdp2.yaml runs on CPUs, too",
            key="trainer.strategy",
        )
    return Layout(devices, nodes, kind, name, precision, policy_offload or _offloads(strategy), notes)


def _devices(wanted: Any, accelerator: str) -> tuple[int, tuple[str, ...]]:
    text = str(wanted)
    if isinstance(wanted, (list, tuple)):
        return len(wanted), ()
    if text not in ("auto", "-1"):
        return _count(text), ()
    if accelerator == "cpu":
        return 1, ()
    found = torch.cuda.device_count()
    return (found, ()) if found else (1, (f"devices: {text} is taken as 1: no GPU is seen here",))


def _count(devices: str) -> int:
    """How many devices ``4`` or ``0, 1`` are."""
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    if (
        not parts
        or not all(part.isdecimal() for part in parts)
        or (len(parts) == 1 and "," not in devices and int(devices) < 1)
    ):
        raise ConfigurationError(
            f"is a number of devices, a list of them, or auto; got {devices}", key="trainer.devices"
        )
    return len(parts) if "," in devices else int(devices)


def _strategy(strategy: Any, ranks: int) -> tuple[str, Kind]:
    """Name and kind of a strategy's name or object; Lightning takes "auto" as DDP where there are several ranks."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    families = [name] if isinstance(strategy, str) else [base.__name__ for base in type(strategy).__mro__]
    if any(other in family.lower() for family in families for other in ("deepspeed", "xla")):
        raise ConfigurationError(f"{name} is not offered: use one of configs/strategy/", key="trainer.strategy")
    if "ModelParallelStrategy" in families:
        return name, "fsdp2"
    if any("fsdp" in family.lower() for family in families):
        return name, "fsdp"
    return name, "ddp" if ranks > 1 else "single"


def _offloads(strategy: Any) -> bool:
    return bool(getattr(getattr(strategy, "cpu_offload", None), "offload_params", False))


def _precision(value: Any) -> str:
    """Lightning's long name of a precision."""
    short = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
    return short.get(str(value), str(value))
