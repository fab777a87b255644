"""How many processes a run would have and what each of them would hold, read from the trainer's settings alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from app.errors import ConfigurationError

Kind = Literal["single", "ddp", "sharded"]
STORED_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HALF_PRECISIONS = ("bf16-true", "16-true")


@dataclass(frozen=True)
class Layout:
    """The processes of a run.

    Attributes:
        devices: ranks on each machine.
        nodes: machines.
        kind: "single" and "ddp" hold everything on every rank, "sharded" (FSDP) divides it by the ranks.
        strategy: its name, for the print-out.
        precision: Lightning's name of it.
        notes: what was assumed.
    """

    devices: int
    nodes: int
    kind: Kind
    strategy: str
    precision: str
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        return self.devices * self.nodes

    @property
    def shards(self) -> int:
        """Parts that parameters, gradients and optimiser state are cut into."""
        return self.ranks if self.kind == "sharded" else 1

    @property
    def halves_weights(self) -> bool:
        """Whether Lightning turns every parameter into one of 16 bits."""
        return self.precision in HALF_PRECISIONS

    def stored_bytes(self, dtype: str) -> int:
        """Bytes of a parameter of a policy of ``dtype``."""
        return 2 if self.halves_weights else STORED_BYTES[dtype]

    def compute_bytes(self, dtype: str) -> int:
        """Bytes of an activation."""
        return 2 if self.precision.startswith(("bf16", "16")) else STORED_BYTES[dtype]


def plan_layout(trainer: Mapping[str, Any]) -> Layout:
    """The layout that Lightning would choose; starts no process and touches no device.

    Raises:
        ConfigurationError: no device is asked for.
    """
    devices, notes = _devices(trainer.get("devices", "auto"), str(trainer.get("accelerator") or "auto"))
    nodes = int(trainer.get("num_nodes") or 1)
    if devices < 1 or nodes < 1:
        raise ConfigurationError("a run needs at least one device and one node", key="trainer.devices")
    name, kind = _strategy(trainer.get("strategy") or "auto", devices * nodes)
    return Layout(devices, nodes, kind, name, _precision(trainer.get("precision")), notes)


def _devices(wanted: Any, accelerator: str) -> tuple[int, tuple[str, ...]]:
    text = str(wanted)
    if isinstance(wanted, (list, tuple)):
        return len(wanted), ()
    if text not in ("auto", "-1"):
        return (len([part for part in text.split(",") if part.strip()]) if "," in text else int(text)), ()
    if accelerator == "cpu":
        return 1, ()
    found = torch.cuda.device_count()
    return (found, ()) if found else (1, (f"devices: {text} is taken as 1: no GPU is seen here",))


def _strategy(strategy: Any, ranks: int) -> tuple[str, Kind]:
    """Name and kind of a strategy's name or object; Lightning takes "auto" as DDP where there are several ranks."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    families = [name] if isinstance(strategy, str) else [base.__name__ for base in type(strategy).__mro__]
    if any("fsdp" in family.lower() or family == "ModelParallelStrategy" for family in families):
        return name, "sharded"
    return (name, "ddp") if ranks > 1 else (name, "single")


def _precision(value: Any) -> str:
    """Lightning's long name of a precision."""
    short = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
    return short.get(str(value), str(value))
