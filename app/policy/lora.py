"""Low-rank adapters (LoRA, arXiv 2106.09685) around a frozen policy, by peft.

The reference policy is the base with its adapters off, so that nothing is loaded twice.
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.errors import ConfigurationError
from app.policy.weights import named_weights
from app.seeds import derive_seed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """Adapters of rank ``r``: W + alpha / r · B A, of which only A and B are trained.

    Attributes:
        r: rank.
        alpha: see above; twice the rank is common.
        dropout: on the adapters' inputs while training. The policy that is updated then differs from the one that
            sampled, so that 0 is usual in RL.
        target_modules: names of linear layers, such as q_proj, or "all-linear": all but the output head. Of a mixture
            of experts these are the router and, each with adapters of its own, the experts of a layer too.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR

    def __post_init__(self) -> None:
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        rules = {
            "r": (self.r >= 1, "must be at least 1"),
            "alpha": (self.alpha > 0, "must be positive"),
            "dropout": (0 <= self.dropout < 1, "must lie in [0, 1)"),
            "target_modules": (len(self.target_modules) > 0, "names no layer"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigurationError(f"{rule}, got {getattr(self, name)!r}", key=f"policy.lora.{name}")


def add_adapters(model: "PreTrainedModel", settings: LoraSettings, seed: int) -> "PeftModel":
    """``model`` with fresh adapters, of which alone gradients are taken; its own weights are frozen in place.

    At first the adapters change nothing (B = 0). A meta-device model gets meta-device adapters.

    Raises:
        ConfigurationError: the model has no such layers; one of them shares its weights with another, which it would
            then no longer do; the model's own weights could not be told from the adapted one's.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    names = {name for name, _ in named_weights(model, remove_duplicate=False)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        with torch.random.fork_rng(devices=[]):  # peft draws values too, which are replaced below
            adapted = get_peft_model(model, config)
    except ValueError as error:
        cause = " ".join(str(error).split())
        raise ConfigurationError(f"no adapters fit this model: {cause[:300]}", "policy.lora.target_modules") from error
    _check_mergeable(adapted, names)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            parameter.data.copy_(first_value(name, parameter.shape, seed))
    return adapted


def _check_mergeable(adapted: "PeftModel", names: set[str]) -> None:
    """Refuses before training what could not be sent to an engine, or exported, after it."""
    weights = list(named_weights(adapted, remove_duplicate=False))
    tensors = Counter(id(tensor) for _, tensor in weights)
    for name, tensor in weights:
        if ".base_layer." in name and tensors[id(tensor)] > 1:
            others = [base_name(other) for other, same in weights if same is tensor and other != name]
            raise ConfigurationError(
                f"{base_name(name)} and {others[0]} are one tensor (tie_word_embeddings), and an adapter on "
                "either would make them two: leave these layers out",
                "policy.lora.target_modules",
            )
    if foreign := {base_name(name) for name, _ in weights if not is_adapter(name)} ^ names:
        raise ConfigurationError(
            f"adapters around these layers cannot be merged into the model (peft renames {min(foreign)}): name others",
            "policy.lora.target_modules",
        )


def has_adapters(model: Any) -> bool:
    """True for what :func:`add_adapters` returned, however it is wrapped for sharding."""
    return hasattr(model, "peft_config")


def adapter_rank(model: Any) -> int:
    """r of the active adapter."""
    return int(model.peft_config[model.active_adapter].r)


def base_model(model: Any) -> "PreTrainedModel":
    """The Hugging Face model inside adapters, or ``model`` itself."""
    return model.get_base_model() if has_adapters(model) else model


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """The name that a frozen parameter of an adapted model has in the model alone."""
    return re.sub(r"(\.base_layer)+\.", ".", name.removeprefix("base_model.model."))


def first_value(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """An adapter's untrained weights, float32, a pure function of the arguments: A as torch's linear layers, B zero; of
    embeddings, as peft has it, A zero."""
    if ".lora_B." in name or ".lora_embedding_A." in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
    value = torch.empty(shape)
    torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
    return value


@contextlib.contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Inside, ``model`` computes what its base alone does.

    peft's own context also switches ``requires_grad``, which sharded parameters do not take well.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class WithoutAdapters:
    """The reference policy of an adapted one: the same weights, adapters off. Only to be called."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with adapters_off(self.model):
            return self.model(*args, **kwargs)

    def modules(self) -> Iterator[torch.nn.Module]:
        return self.model.modules()

    def eval(self) -> None:
        self.model.eval()


def save_adapter(model: "PeftModel", weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes peft's ``adapter_config.json`` and ``adapter_model.safetensors`` into ``folder``.

    Args:
        model: what :func:`add_adapters` returned.
        weights: its whole adapter weights, by the names they have in ``model``.
        folder: made where it is not there.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = get_peft_model_state_dict(model, state_dict=weights)
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / "adapter_model.safetensors")
    model.peft_config[model.active_adapter].save_pretrained(folder)
