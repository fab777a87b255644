"""How a policy lies on the ranks: what is refused, and how it is loaded in one process, under DDP, FSDP and FSDP2.

- ``single``, ``ddp``: every rank holds the whole model.
- ``fsdp2`` (``fully_shard``): every parameter is a DTensor, split by rows over all ranks. The model is built on the
  meta device, and of what is stored a rank reads no more than its own rows. With ``offload`` these rows, their
  gradients and optimiser states stay in host memory, and the optimiser steps there.
- ``fsdp`` (FullyShardedDataParallel): flat parameters. Each rank first holds the whole model in host memory, and moves
  it to the device layer by layer as it is split.

Precision: parameters stay as they are (float32 master weights, unless ``policy.dtype`` says otherwise), gradients are
reduced in float32. "bf16-mixed" runs the policy's forward pass under autocast. "bf16-true" casts the parameters
themselves as they are gathered; without sharding nothing is gathered, and it is "bf16-mixed". Only the policy's own
forward pass is affected: log-probabilities, traces and the loss are float32 in any case.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from app.errors import ConfigurationError
from app.policy.checkpoints import origin_of
from app.policy.models import load_policy
from app.policy.precision import Autocast
from app.policy.sharding.building import build_fsdp2, wrap_fsdp
from app.policy.sharding.wrapping import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.settings import PolicySettings

Kind = Literal["single", "ddp", "fsdp", "fsdp2"]
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


@dataclass(frozen=True)
class Sharding:
    """How a policy lies on the ranks.

    Attributes:
        kind: see above.
        device: this rank's.
        precision: "32-true", "bf16-mixed" or "bf16-true".
        fsdp_options: keyword arguments of FullyShardedDataParallel, for kind "fsdp".
        offload: whether a policy of kind "fsdp2" waits in host memory.
    """

    kind: Kind = "single"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "32-true"
    fsdp_options: tuple[tuple[str, Any], ...] = ()
    offload: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigurationError(
                f"must be one of {', '.join(PRECISIONS)}, got {self.precision!r}", key="trainer.precision"
            )
        if self.offload and self.kind != "fsdp2":
            instead = "FSDPStrategy has cpu_offload of its own" if self.kind == "fsdp" else "use fsdp2_offload.yaml"
            raise ConfigurationError(f"is of ModelParallelStrategy alone: {instead}", key="model.policy_offload")

    @property
    def sharded(self) -> bool:
        """Whether a forward pass needs the other ranks."""
        return self.kind in ("fsdp", "fsdp2")

    def check_backend(self) -> None:
        """Refuses to offload where ranks cannot exchange what lies in host memory: sums of norms, whole weights."""
        if self.offload and "cpu:" not in torch.distributed.get_backend_config():
            raise ConfigurationError(
                "tensors in host memory need a backend of their own beside nccl: set "
                'trainer.strategy.init_args.process_group_backend to "cuda:nccl,cpu:gloo", as '
                "configs/strategy/fsdp2_offload.yaml does",
                key="model.policy_offload",
            )

    def check_policy(self, settings: "PolicySettings") -> None:
        """Refuses dtypes that cannot be trained, before anything is loaded.

        Raises:
            ConfigurationError: bfloat16 parameters under a precision that promises float32 ones; adapters, which are
                float32, beside others in one flat parameter.
        """
        if settings.dtype == "float32":
            return
        adapted = origin_of(settings).lora is not None
        if self.precision != "32-true" and not adapted:
            raise ConfigurationError(
                f"is {settings.dtype}, but precision {self.precision} trains float32 master weights: leave it out",
                key="policy.dtype",
            )
        if self.kind == "fsdp" and adapted:
            raise ConfigurationError(
                f"is {settings.dtype} and adapters are float32, but FSDPStrategy makes one tensor of a layer's "
                "parameters: leave it out, or use configs/strategy/fsdp2.yaml",
                key="policy.dtype",
            )

    def compute_dtype(self, policy: Any) -> torch.dtype:
        """The dtype of the policy's products of matrices: see the module's text on precision."""
        return next(inner_model(policy).parameters()).dtype if self.precision == "32-true" else torch.bfloat16

    def load_policy(self, settings: "PolicySettings", seed: int) -> "PreTrainedModel":
        """The policy on this rank, in eval mode. Collective: every rank calls it.

        Raises:
            ConfigurationError: see :meth:`check_policy` and :func:`app.policy.models.load_policy`.
        """
        self.check_policy(settings)
        return self._load(settings, seed, frozen=False, offload=self.offload)

    def load_reference(self, settings: "PolicySettings", seed: int, offload: bool) -> "PreTrainedModel":
        """The policy's initial weights alone, frozen, and sharded as the policy is.

        Args:
            settings: the policy's.
            seed: the policy's.
            offload: its weights wait in host memory and come to the device as they are needed.
        """
        return self._load(replace(settings, lora=None), seed, frozen=True, offload=offload)

    def _load(self, settings: "PolicySettings", seed: int, frozen: bool, offload: bool) -> "PreTrainedModel":
        if self.kind == "fsdp2":
            return self._with_autocast(build_fsdp2(settings, seed, self.device, self.precision, frozen, offload))
        model = load_policy(settings, seed)
        if frozen:
            model.requires_grad_(False)
        if self.kind == "fsdp":
            waits = offload and self.device.type != "cpu"
            options = dict(self.fsdp_options)
            return wrap_fsdp(self._with_autocast(model), self.device, self.precision, waits, options)
        return self._with_autocast(model.to(self.device) if frozen and not offload else model)

    def _with_autocast(self, model: "PreTrainedModel") -> "PreTrainedModel":
        if self.precision == "bf16-mixed" or (self.precision == "bf16-true" and self.kind in ("single", "ddp")):
            Autocast(self.device.type).attach(model)
        return model
