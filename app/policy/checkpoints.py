"""A policy out of a training checkpoint: the file (or, of sharded training, the folder) that a run saves by iteration.

It holds the settings that the policy was made with, from which the same model and tokenizer are made again, and the
trained weights, which then take the place of the first ones.
"""

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from app.errors import ConfigurationError
from app.policy.fingerprints import same_base
from app.policy.lora import LoraSettings, has_adapters, is_adapter
from app.policy.sources import nearest_sibling, refuse
from app.policy.tokenizers import NewTokenizerSettings
from app.policy.weights import named_weights
from app.storage.checkpoints import SUFFIX, problem_of
from app.storage.checksums import check_folder
from app.storage.shards import META, data_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.policy.settings import PolicySettings

PREFIX = "policy."
"""Of the policy's weights among the LightningModule's."""
SHARDED_WEIGHTS = ("state_dict", "model")
"""Under which name a sharded checkpoint holds the module's: of ModelParallelStrategy, and of FSDPStrategy."""
OWN_SETTINGS = ("dtype", "attn_implementation", "gradient_checkpointing", "verify")
"""Settings that are the new run's to choose; the others are those of the run that saved the checkpoint."""

Settings = TypeVar("Settings", bound="PolicySettings")


def is_checkpoint(path: str | None) -> bool:
    """Whether a policy's path is that of a training checkpoint, by its name."""
    return path is not None and path.endswith(SUFFIX)


def check_checkpoint(path: str) -> None:
    """Refuses a checkpoint that is not there."""
    file = Path(path).expanduser()
    if not file.exists():
        refuse(f"there is no checkpoint {path}{nearest_sibling(file)}", "path")


def verify_source(settings: "PolicySettings") -> None:
    """Reads the checkpoint or export that ``settings`` name, and what that one was made from, and compares checksums,
    unless ``settings.verify`` is false: then it only looks whether all of it is there.

    Raises:
        ConfigurationError: something is damaged or lacks.
    """
    if settings.path is None:
        return
    path = Path(settings.path).expanduser()
    if is_checkpoint(settings.path):
        problem = problem_of(path, settings.verify, resumable=False)
    else:
        problem = check_folder(path, settings.verify) if path.is_dir() else None
    if problem is not None:
        hint = "" if is_checkpoint(settings.path) else "; if the change is yours, delete its checksums.json"
        refuse(f"{settings.path} {problem}{hint}", "path")
    if is_checkpoint(settings.path):
        verify_source(trained_from(settings))
        _check_base(settings)


def _check_base(settings: "PolicySettings") -> None:
    """Refuses the adapters of a checkpoint around other weights than they were trained with."""
    assert settings.path is not None
    origin, seed = trained_from(settings), seed_behind(settings.path, 0)
    saved = _read(Path(settings.path).expanduser(), settings.path, weights=False).get("stands_on")
    if origin.lora is not None and not same_base(origin, seed, saved):
        refuse(
            f"the adapters in {settings.path} were trained around other weights than now are in {origin.path}", "path"
        )


def saved_prompt(path: str) -> dict[str, Any] | None:
    """How the run that saved the checkpoint asked its policy, see :mod:`app.policy.prompt_record`; None where it does
    not say."""
    saved = _read(Path(path).expanduser(), path, weights=False).get("prompt")
    return saved if isinstance(saved, dict) else None


def trained_from(settings: "Settings") -> "Settings":
    """The settings of the policy that the checkpoint at ``settings.path`` was trained from.

    Raises:
        ConfigurationError: what is there is no checkpoint of this project.
    """
    assert settings.path is not None
    saved = _read(Path(settings.path).expanduser(), settings.path, weights=False).get("policy_settings")
    if not isinstance(saved, dict):
        refuse(f"{settings.path} does not say what its policy was made from: it is not a checkpoint of fit", "path")
    if settings.lora is not None:
        refuse("a checkpoint has its own adapters or none: leave this out, or start from an export (HF folder)", "lora")
    known = {field.name for field in dataclasses.fields(settings)}
    values = {name: value for name, value in saved.items() if name in known}
    if isinstance(values.get("tokenizer"), dict):
        values["tokenizer"] = NewTokenizerSettings(**values["tokenizer"])
    if isinstance(values.get("lora"), dict):
        values["lora"] = LoraSettings(**values["lora"])
    values |= {name: getattr(settings, name) for name in OWN_SETTINGS}
    if settings.tokenizer is not None:
        values["tokenizer"] = settings.tokenizer
    return type(settings)(**values)


def origin_of(settings: "Settings") -> "Settings":
    """The settings of the model that is to be built: those behind a checkpoint, or ``settings``."""
    while is_checkpoint(settings.path):
        settings = trained_from(settings)
    return settings


def seed_behind(path: str, seed: int) -> int:
    """The seed of the run that saved the checkpoint at ``path``, from which new weights under its adapters are drawn
    again; ``seed`` where it does not say."""
    return int(_read(Path(path).expanduser(), path, weights=False).get("policy_seed", seed))


def load_trained_weights(policy: "PreTrainedModel", path: str) -> "PreTrainedModel":
    """Puts the weights of the checkpoint at ``path`` into ``policy``, and returns it.

    Raises:
        ConfigurationError: the weights are not this policy's.
    """
    weights = read_weights(path)
    check_trained(weights, policy, path)
    try:
        # Of a policy with adapters, checkpoints hold the adapters alone.
        policy.load_state_dict(weights, strict=not has_adapters(policy))
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise ConfigurationError(f"the weights in {path} do not fit: {cause[:300]}", key="policy.path") from error
    return policy


def check_trained(
    weights: dict[str, torch.Tensor], policy: torch.nn.Module, path: str, key: str = "policy.path"
) -> None:
    """Refuses a checkpoint without all trained weights of ``policy``, or with other shapes.

    Without this, adapters that are missing or of another name would stay untrained in silence.
    """
    adapted = has_adapters(policy)
    for name, weight in named_weights(policy):
        if adapted and not is_adapter(name):
            continue
        if name not in weights:
            raise ConfigurationError(f"the weights in {path} do not fit: they lack {name}", key=key)
        if weights[name].shape != weight.shape:
            shapes = f"{tuple(weights[name].shape)}, the policy's is {tuple(weight.shape)}"
            message = f"the weights in {path} do not fit: the shape of {name} is {shapes}"
            raise ConfigurationError(message, key=key)
    foreign = sorted(weights.keys() - policy.state_dict().keys())
    if foreign:
        raise ConfigurationError(f"the weights in {path} do not fit: the policy has no {foreign[0]}", key=key)


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The policy's whole trained weights by name, those of a file left on the disk until they are used.

    Raises:
        ConfigurationError: the checkpoint cannot be read.
    """
    state = _read(Path(path).expanduser(), path, weights=True).get("state_dict", {})
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def _read(path: Path, shown: str, weights: bool) -> dict[str, Any]:
    """What the checkpoint holds: of a sharded one either the tensors or the rest, of a file both."""
    try:
        if path.is_dir() and weights:
            return _read_shards(path)
        file = path / META if path.is_dir() else path
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        cause = " ".join(str(error).split())
        raise ConfigurationError(f"cannot read the checkpoint {shown}: {cause[:200]}", key="policy.path") from error
    return content if isinstance(content, dict) else {}


def _read_shards(folder: Path) -> dict[str, Any]:
    """The whole tensors of a checkpoint that several ranks wrote, read by one process."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    reader, planner = FileSystemReader(folder), _EmptyStateDictLoadPlanner(keys=set(SHARDED_WEIGHTS))
    try:
        with data_only():
            _load_state_dict(state, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:  # no Exception, and its text is a page
        raise RuntimeError(next(str(cause) for cause, _ in error.failures.values())) from error
    return {"state_dict": next((state[name] for name in SHARDED_WEIGHTS if name in state), {})}
