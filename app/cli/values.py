"""Values that Lightning would refuse late, pass over or misread, refused from the configuration alone."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from app.errors import closest
from app.policy.sharding.strategies import PRECISIONS
from app.policy.sources import nearest_sibling
from app.slurm import noted_checkpoint

Problem = tuple[list[str], str]
"""The path of a key, and what is wrong with its value."""

_ITERATIONS = "data.iterations says how long a run is: leave this out"
_CHECKPOINTS = (
    "the key checkpoint says whether checkpoints are saved: give `checkpoint: {}` or null, and leave this out"
)
_CLIP = "model.optimizer.max_grad_norm clips the gradient: leave this out"
ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((1,), "must be 1: data.iterations says how long a run is"),
    "min_epochs": ((None, 0, 1), _ITERATIONS),
    "max_steps": ((-1,), _ITERATIONS),
    "min_steps": ((None, 0), _ITERATIONS),
    "overfit_batches": ((0,), "each iteration has its own prompts: give a small data.train, and leave this out"),
    "accumulate_grad_batches": (
        (1,),
        "gradients are summed over micro-batches by themselves: set model.micro_batch_size (memory) or "
        "model.updates.mini_batches (optimiser steps), and leave this out",
    ),
    "gradient_clip_val": ((None,), _CLIP),
    "gradient_clip_algorithm": ((None,), _CLIP),
    "enable_checkpointing": ((None,), _CHECKPOINTS),
}
"""Keys of the trainer that another key decides → the values that say nothing, and what to do instead."""

SAME_PRECISION = {None: "32-true", "32": "32-true", 32: "32-true", "bf16": "bf16-mixed"}

KEYWORDS = ("best", "hpc")
"""What Lightning takes for a checkpoint's path and looks up where this project keeps none, going on without."""

FOLDERS = (
    ("trainer", "default_root_dir"),
    ("checkpoint", "folder"),
    ("export", "folder"),
    ("evaluation", "folder"),
)


def value_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with values of a whole configuration, ``init_args`` written out or not.

    Those of the command line may be strings. Reads no file but the names of folders.
    """
    yield from _trainer_problems(_part(values, "trainer"))
    yield from _seed_problems(_read(values.get("seed_everything")))
    root = _read(_part(values, "trainer").get("default_root_dir"))
    if noted_checkpoint(Path(root if isinstance(root, str) else "runs")) is None:  # which takes its place
        yield from _checkpoint_problems(_read(values.get("ckpt_path")))
    for part, key in FOLDERS:
        folder = _read(_part(values, part).get(key))
        if isinstance(folder, str) and (problem := unwritable(Path(folder))):
            yield [part, key], problem


def unwritable(folder: Path) -> str | None:
    """Why ``folder`` cannot be made or written into, as far as can be told without doing it; None where it can."""
    near = folder.expanduser().absolute()
    while not near.exists() and near != near.parent:
        near = near.parent
    if not near.is_dir():
        return f"{near} is a file, not a folder"
    if not os.access(near, os.W_OK | os.X_OK):
        return f"cannot write into {near}"
    return None


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = values.get(key)
    if not isinstance(part, Mapping):
        return {}
    inner = part.get("init_args")
    return {**part, **inner} if isinstance(inner, Mapping) else part


def _read(value: Any) -> Any:
    """A value of the command line as the parser will read it."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _trainer_problems(trainer: Mapping[str, Any]) -> Iterator[Problem]:
    given = {key: _read(value) for key, value in trainer.items()}
    for key, (neutral, advice) in ELSEWHERE.items():
        if key in given and given[key] not in neutral and not _is_reference(given[key]):
            yield ["trainer", key], f"{advice} (got {given[key]})"
    precision = given.get("precision")
    if precision not in (*SAME_PRECISION, *PRECISIONS) and not _is_reference(precision):
        near = closest(str(precision), PRECISIONS, cutoff=0.3)
        hint = f"; did you mean {near}?" if near else ""
        yield ["trainer", "precision"], f"must be one of {', '.join(PRECISIONS)}, got {precision}{hint}"
    interval = given.get("val_check_interval")
    if isinstance(interval, float):
        yield ["trainer", "val_check_interval"], f"counts iterations: give a whole number, got {interval}"


def _seed_problems(seed: Any) -> Iterator[Problem]:
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 2**32:
        yield ["seed_everything"], f"must lie in [0, 2^32), got {seed}"


def _checkpoint_problems(path: Any) -> Iterator[Problem]:
    if not isinstance(path, str) or path == "last" or "://" in path or _is_reference(path):
        return
    file = Path(path).expanduser()
    if not file.exists():
        keyword = path in KEYWORDS or path.startswith("registry")
        advice = ": give the file, such as runs/NAME/version_0/checkpoints/last.ckpt" if keyword else ""
        yield ["ckpt_path"], f"there is no checkpoint {path}{advice or nearest_sibling(file)}"
    elif file.is_dir() and not (file / "meta.pt").is_file():
        yield ["ckpt_path"], _not_a_checkpoint(file)


def _not_a_checkpoint(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return (
            f"{folder} is a model's folder, from which a run starts and does not resume: give it as model.policy.path"
        )
    inside = sorted(folder.glob("*.ckpt"))
    newest = folder / "last.ckpt" if folder / "last.ckpt" in inside else inside[-1] if inside else None
    return f"{folder} is no checkpoint{f'; did you mean {newest}?' if newest else ' but another folder'}"


def _is_reference(value: Any) -> bool:
    """An interpolation, whose value only OmegaConf knows."""
    return isinstance(value, str) and "${" in value
