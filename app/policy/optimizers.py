"""The optimiser, its learning-rate schedule and the clipping of gradients, as settings."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from app.errors import ConfigurationError
from app.policy.sharding.wrapping import is_fsdp, unwrapped


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with warm-up.

    Attributes:
        name: "adamw" (fused), or "adamw8bit": that of bitsandbytes, for whole parameters; running means of
            tensors of at least 4,096 elements take a byte each.
        lr: peak learning rate.
        betas: decay of the running means of gradient and squared gradient.
        weight_decay: decoupled; on matrices only.
        warmup_iterations: iterations of linear warm-up; iteration t of it runs at lr · (t + 1) / (warm-up + 1).
        schedule: what follows the warm-up, down to ``lr · final_lr_ratio`` at the last iteration.
        final_lr_ratio: see ``schedule``.
        max_grad_norm: the gradient's global norm is clipped to this; null switches clipping off.
    """

    name: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_iterations: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_ratio: float = 0.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        rules = {
            "lr": (self.lr > 0, "must be positive"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "must each lie in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "must be at least 0"),
            "warmup_iterations": (self.warmup_iterations >= 0, "must be at least 0"),
            "final_lr_ratio": (0 <= self.final_lr_ratio <= 1, "must lie in [0, 1]"),
            "max_grad_norm": (
                self.max_grad_norm is None or self.max_grad_norm > 0,
                "must be positive or null",
            ),
        }
        for field, (holds, rule) in rules.items():
            if not holds:
                raise ConfigurationError(f"{rule}, got {getattr(self, field)}", key=f"model.optimizer.{field}")


def lr_factor(settings: OptimizerSettings, iteration: int, total: float) -> float:
    """Share of the peak learning rate at ``iteration`` (from 0) of ``total``."""
    warmup = settings.warmup_iterations
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (iteration - warmup) / max(1, total - 1 - warmup))
    falling = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * falling


def trained_parameters(model: Any) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trained matrices, and the trained vectors (norms and biases), by the shapes they have when whole."""
    matrices = getattr(model, "matrix_names", None)
    found: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() > 1 if matrices is None else unwrapped(name) in matrices
            found[0 if is_matrix else 1].append(parameter)
    return found


def build_optimizer(
    matrices: Iterable[torch.nn.Parameter], vectors: Iterable[torch.nn.Parameter], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimiser over trained parameters; vectors (norms, biases) are not decayed.

    Raises:
        ConfigurationError: bitsandbytes is needed and not installed.
    """
    groups = [
        {"params": list(matrices), "weight_decay": settings.weight_decay},
        {"params": list(vectors), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adamw8bit":
        return _adamw8bit()(groups, lr=settings.lr, betas=settings.betas)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


OF_A_GROUP = ("initial_lr", "betas", "weight_decay")
"""What settings say of a group of parameters, by the names that optimisers and schedules have for it."""


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """By group of parameters, what the settings say; for an optimiser whose schedule is made."""
    return [{name: group[name] for name in OF_A_GROUP} for group in optimizer.param_groups]


def keep_settings(schedule: torch.optim.lr_scheduler.LambdaLR, own: list[dict[str, Any]]) -> None:
    """Puts back what settings say, where a checkpoint has brought what it was saved with.

    Of a checkpoint, an optimiser keeps its running means, and a schedule its iteration.

    Args:
        schedule: of the optimiser.
        own: :func:`group_settings` before the checkpoint was loaded.
    """
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [settings["initial_lr"] for settings in own]
    for group, settings, factor in zip(groups, own, schedule.lr_lambdas, strict=True):
        group.update(settings, lr=settings["initial_lr"] * factor(schedule.last_epoch))
    schedule._last_lr = [group["lr"] for group in groups]


def clip_gradients(model: Any, max_norm: float | None) -> torch.Tensor:
    """Scales the gradient down to the norm ``max_norm`` where it is larger; null only measures it. Collective.

    A gradient that is not finite stays as it is, so that its first tensor can be named (not under FSDPStrategy).

    Returns:
        The norm before, over all ranks' parts.
    """
    limit = float("inf") if max_norm is None else max_norm
    if is_fsdp(model):
        return model.clip_grad_norm_(limit)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if norm.isfinite():
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm


def check_optimizer(settings: OptimizerSettings, sharded: bool) -> None:
    """Refuses what could only fail once the model is loaded.

    Raises:
        ConfigurationError: bitsandbytes is needed and not installed, or cannot work on sharded parameters.
    """
    if settings.name != "adamw8bit":
        return
    if sharded:
        raise ConfigurationError(
            "adamw8bit works on whole parameters only: use it with strategy ddp or on one device, or use adamw",
            key="model.optimizer.name",
        )
    _adamw8bit()


def _adamw8bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        message = "adamw8bit needs bitsandbytes: `.venv/bin/uv pip install bitsandbytes`, or use adamw"
        raise ConfigurationError(message, key="model.optimizer.name") from error
    return AdamW8bit


def number_by_model(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, Any]:
    """An optimiser's state dict in which parameters are numbered as they follow each other in ``module``.

    torch numbers them by groups. Sharded strategies read a whole checkpoint by the order in the module; the plain ones
    do not mind the numbers.
    """
    places = {id(parameter): place for place, parameter in enumerate(module.parameters())}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    new = {number: places[id(parameter)] for number, parameter in zip(numbers, held, strict=True)}
    groups = [{**group, "params": [new[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[number]: value for number, value in state["state"].items()}, "param_groups": groups}
