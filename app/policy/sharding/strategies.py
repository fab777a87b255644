"""What differs between one process, DDP, FSDP and FSDP2, all in this file: building, gathering, clipping, generating.

- ``single``, ``ddp``: every rank holds the whole model.
- ``fsdp2`` (``fully_shard``): every parameter is a DTensor, split by rows over all ranks. The model is built on the
  meta device, and a rank keeps no more than its own rows of what it reads or draws. With ``offload`` these rows, their
  gradients and optimiser states stay in host memory, and the optimiser steps there.
- ``fsdp`` (FullyShardedDataParallel): flat parameters. Each rank first holds the whole model in host memory, and moves
  it to the device layer by layer as it is split.

Precision: parameters stay as they are (float32 master weights, unless ``policy.dtype`` says otherwise), gradients are
reduced in float32. "bf16-mixed" runs the policy's forward pass under autocast. "bf16-true" casts the parameters
themselves as they are gathered; without sharding nothing is gathered, and it is "bf16-mixed". Only the policy's own
forward pass is affected: log-probabilities, traces and the loss are float32 in any case.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from app.errors import ConfigurationError
from app.policy.checkpoints import is_checkpoint, trained_from
from app.policy.lora import base_model
from app.policy.precision import Autocast
from app.policy.sharding.filling import fill_buffers, fill_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.models import PolicySettings

Kind = Literal["single", "ddp", "fsdp", "fsdp2"]
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
_WHOLE = "parameters_are_whole"
"""Attribute of a model inside :func:`whole_parameters`."""


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
        adapted = _origin(settings).lora is not None
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
        from app.policy.models import load_policy

        if self.kind == "fsdp2":
            return self._load_fsdp2(settings, seed, frozen, offload)
        if self.kind == "fsdp":
            return self._load_fsdp(settings, seed, frozen, offload and self.device.type != "cpu")
        model = load_policy(settings, seed)
        if frozen:
            model.requires_grad_(False)
            model = model if offload else model.to(self.device)
        return self._with_autocast(model)

    def _with_autocast(self, model: "PreTrainedModel") -> "PreTrainedModel":
        if self.precision == "bf16-mixed" or (self.precision == "bf16-true" and self.kind in ("single", "ddp")):
            Autocast(self.device.type).attach(model)
        return model

    def _load_fsdp2(self, settings: "PolicySettings", seed: int, frozen: bool, offload: bool) -> "PreTrainedModel":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        from app.policy.models import empty_policy, finished

        origin = _origin(settings)
        model = finished(empty_policy(origin), origin, seed)
        if frozen:
            model.requires_grad_(False)
        low = torch.bfloat16 if self.precision == "bf16-true" else None
        host = CPUOffloadPolicy(pin_memory=self.device.type != "cpu")
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (torch.distributed.get_world_size(),)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32),
            "offload_policy": host if offload else OffloadPolicy(),
        }
        for layer in _layers(model):
            fully_shard(layer, **options)
        # What is not trained has no backward pass that would shard it again.
        fully_shard(model, reshard_after_forward=True if frozen else None, **options)
        model.to_empty(device="cpu" if offload else self.device)
        fill_shards(model, settings, seed)
        fill_buffers(model, self.device)
        return self._with_autocast(model)

    def _load_fsdp(self, settings: "PolicySettings", seed: int, frozen: bool, offload: bool) -> "PreTrainedModel":
        from torch.distributed.fsdp import CPUOffload, MixedPrecision
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        from app.policy.models import load_policy

        model = load_policy(settings, seed)
        if frozen:
            model.requires_grad_(False)
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        self._with_autocast(model)
        low = torch.float32 if self.precision == "32-true" else torch.bfloat16
        options: dict[str, Any] = {
            "mixed_precision": MixedPrecision(low, torch.float32, torch.float32),
            **dict(self.fsdp_options),
            "use_orig_params": True,
        }
        if offload:
            options["cpu_offload"] = CPUOffload(True)
        classes = {type(layer) for layer in _layers(model)}
        wrapped = FSDP(model, auto_wrap_policy=ModuleWrapPolicy(classes), device_id=self.device, **options)
        wrapped.matrix_names, wrapped.low_precision = matrices, low is torch.bfloat16
        return cast("PreTrainedModel", wrapped)


def _origin(settings: "PolicySettings") -> "PolicySettings":
    """The settings of the model that is to be built: those behind a checkpoint, or ``settings``."""
    while is_checkpoint(settings.path):
        settings = trained_from(settings)
    return settings


def _layers(model: Any) -> list[torch.nn.Module]:
    """The decoder layers: what is gathered at once."""
    names = set(base_model(model)._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigurationError(
            f"{type(base_model(model)).__name__} does not say which of its modules are layers: it cannot be sharded; "
            "use strategy ddp",
            key="trainer.strategy",
        )
    return layers


def is_fsdp2(model: Any) -> bool:
    """Whether ``model`` is sharded by ``fully_shard``."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_fsdp(model: Any) -> bool:
    """Whether ``model`` is a FullyShardedDataParallel."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


@contextlib.contextmanager
def whole_parameters(model: Any) -> Iterator[None]:
    """Inside, any rank may call ``model`` any number of times without the others: for generation.

    Entering and leaving are collective for a sharded model, unless an outer one of these contexts is open. Every rank
    then holds all parameters on its device, in the precision that they are gathered in (for a model of 7 billion 15 GB
    under bf16-true, 30 GB otherwise), and gives them back at the end. They must not be changed inside.
    """
    if getattr(model, _WHOLE, False) or not (is_fsdp2(model) or is_fsdp(model)):
        yield
        return
    gathered = contextlib.ExitStack()
    # Lightning validates in inference mode, and tensors that are gathered in it could not be trained with.
    with torch.inference_mode(False), torch.no_grad():
        gathered.enter_context(_unsharded(model) if is_fsdp2(model) else _summoned(model))
    setattr(model, _WHOLE, True)
    try:
        yield
    finally:
        setattr(model, _WHOLE, False)
        with torch.inference_mode(False), torch.no_grad():
            gathered.close()


@contextlib.contextmanager
def _unsharded(model: Any) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    model.set_reshard_after_forward(False)
    try:
        # One pass gathers layer by layer, in the order and on the streams of training; what it gathers then stays.
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=_device_of(model)), use_cache=False)
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        model.set_reshard_after_forward(True)
        if any(parameter.requires_grad for parameter in model.parameters()):
            model.set_reshard_after_forward(False, recurse=False)


@contextlib.contextmanager
def _summoned(model: Any) -> Iterator[None]:
    """FullyShardedDataParallel's own forward refuses to run on summoned parameters: it is stepped over.

    They are summoned as the master weights are: under low precision autocast takes over.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    wrappers = FSDP.fsdp_modules(model)
    low = torch.autocast(_device_of(model).type, torch.bfloat16, enabled=model.low_precision)
    with FSDP.summon_full_params(model, writeback=False):
        for wrapper in wrappers:
            wrapper.forward = wrapper.module.__call__
        # Of the whole model alone: one context that is entered again inside itself would stay on for ever.
        model.forward = low(model.forward)
        try:
            yield
        finally:
            for wrapper in wrappers:
                del wrapper.forward


def _device_of(model: Any) -> torch.device:
    """Where the model computes; offloaded parameters lie elsewhere."""
    buffer, parameter = next(model.buffers(), None), next(model.parameters())
    if buffer is not None:
        return buffer.device
    return torch.device(parameter.device_mesh.device_type) if is_fsdp2(model) else parameter.device


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def evaluation(model: Any, device: torch.device) -> Iterator[None]:
    """Eval mode inside, and a whole model that was offloaded to host memory lies on ``device``."""
    waits = isinstance(model, torch.nn.Module) and not (is_fsdp(model) or is_fsdp2(model))
    waits = waits and _device_of(model) != device
    if waits:
        model.to(device)
    with evaluation_mode(model):
        try:
            yield
        finally:
            if waits:
                model.to("cpu")


def clip_gradients(model: Any, max_norm: float | None) -> torch.Tensor:
    """Scales the gradient down to the norm ``max_norm`` where it is larger; null only measures it. Collective.

    Returns:
        The norm before, over all ranks' parts.
    """
    limit = float("inf") if max_norm is None else max_norm
    if is_fsdp(model):
        return model.clip_grad_norm_(limit)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def trained_parameters(model: Any) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trained matrices, and the trained vectors (norms and biases), by the shapes they have when whole."""
    matrices = getattr(model, "matrix_names", None)
    found: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() > 1 if matrices is None else unwrapped(name) in matrices
            found[0 if is_matrix else 1].append(parameter)
    return found


def unwrapped(name: str) -> str:
    """A parameter's name without what FullyShardedDataParallel adds."""
    return name.replace("_fsdp_wrapped_module.", "")


@contextlib.contextmanager
def readable(model: Any) -> Iterator[None]:
    """Inside, every parameter of ``model`` is a whole tensor or has ``full_tensor``. Collective."""
    with _summoned(model) if is_fsdp(model) and not getattr(model, _WHOLE, False) else contextlib.nullcontext():
        yield


@torch.no_grad()
def whole_weights(model: Any, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """All parameters whole, in host memory, by name; tied ones once. Collective.

    Args:
        model: sharded or not.
        everywhere: on every rank; otherwise other ranks than 0 get an empty dictionary.
    """
    wanted = everywhere or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    weights: dict[str, torch.Tensor] = {}
    with readable(model):
        for name, parameter in model.named_parameters():
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            if wanted:
                weights[unwrapped(name)] = whole.detach().to("cpu", copy=True)
    return weights


def inner_model(model: Any) -> "PreTrainedModel":
    """The Hugging Face model inside FullyShardedDataParallel and adapters, its parameters as they are."""
    return base_model(model.module if is_fsdp(model) else model)


def plain_model(model: Any) -> "PreTrainedModel":
    """The Hugging Face model that ``model`` is, without sharding, adapters or values: on the meta device."""
    base = inner_model(model)
    kind: Any = next(cls for cls in type(base).__mro__ if cls.__module__.startswith("transformers.models."))
    with torch.device("meta"):
        plain = kind._from_config(copy.deepcopy(base.config))
    plain.generation_config = base.generation_config
    return plain
