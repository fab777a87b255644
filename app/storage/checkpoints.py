"""Checkpoints of runs: what belongs to one, whether it is whole, and which is the newest that is.

A checkpoint is a file, or the folder that several ranks wrote. ``contents`` in it says what it was saved with, so that
one that lost a part is not resumed as if the part had been empty.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.storage.checksums import check_archive, check_folder
from app.storage.shards import META, check_shards, is_sharded

SUFFIX = ".ckpt"
LAST = "last.ckpt"
NEEDED = ("loops", "lr_schedulers", "callbacks")
"""Parts without which a run cannot go on; weights and optimiser states lie elsewhere in a sharded checkpoint."""
IN_FILES = ("state_dict", "optimizer_states")
_NAME = re.compile(r"iteration-(\d+)\.ckpt")
_VERSION = re.compile(r"version_(\d+)")


@dataclass(frozen=True)
class Found:
    """The outcome of a search for the newest intact checkpoint.

    Attributes:
        path: it, or None.
        passed_over: newer ones, and what is wrong with each.
    """

    path: Path | None
    passed_over: list[tuple[Path, str]] = field(default_factory=list)


def contents(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What ``checkpoint`` is being saved with, to be kept in it and compared by :func:`lacking`."""
    return {"keys": sorted(map(str, checkpoint)), "optimizer_states": _state_sizes(checkpoint)}


def lacking(checkpoint: Mapping[str, Any], sharded: bool = False) -> str | None:
    """What ``checkpoint`` lacks for its run to go on, as text that goes on after its name; None where nothing is."""
    saved = checkpoint.get("contents") or {}
    elsewhere = set(IN_FILES) if sharded else set()
    needed = {*NEEDED, *IN_FILES, *saved.get("keys", ())} - elsewhere
    for key in sorted(needed):
        if key not in checkpoint:
            return f"lacks {key}, without which a run cannot go on"
    if sharded:
        return None
    sizes = _state_sizes(checkpoint)
    stepped = bool(checkpoint.get("global_step"))
    if sizes != saved.get("optimizer_states", sizes) or (stepped and not (sizes and all(sizes))):
        return "lacks running means of the optimiser, without which a run cannot go on as it was"
    return None


def problem_of(path: Path, verify: bool = True, resumable: bool = True) -> str | None:
    """What is wrong with the checkpoint at ``path``, as text that goes on after its name; None where nothing is.

    Args:
        verify: read all of it and compare the checksums; otherwise only what it holds.
        resumable: a run is to go on from there; otherwise its weights alone are wanted.
    """
    sharded = path.is_dir()
    if sharded and not is_sharded(path):
        return f"is no checkpoint: it holds no {META}"
    file = path / META if sharded else path
    problem = check_folder(path, verify) if sharded else None
    problem = problem or check_archive(file, verify) or (check_shards(path) if sharded else None)
    return problem or _content_problem(file, sharded, resumable)


def newest_intact(folders: Sequence[Path], verify: bool = True) -> Found:
    """The newest checkpoint by iteration that a run can go on from.

    Args:
        folders: where to look, those of the newest run first; each has ``iteration-<n>.ckpt``.
        verify: compare the checksums of those that are looked at.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in checkpoints_newest_first(folders):
        problem = problem_of(path, verify)
        if problem is None:
            return Found(path, passed_over)
        passed_over.append((path, problem))
    return Found(None, passed_over)


def version_of(run: Path) -> int | None:
    """The n of a folder ``version_<n>``; None for another one."""
    match = _VERSION.fullmatch(run.name)
    return int(match[1]) if match else None


def runs_newest_first(root: Path) -> list[Path]:
    """The folders ``version_<n>`` in ``root``, the highest first."""
    found = [(number, path) for path in root.glob("version_*") if (number := version_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def checkpoints_newest_first(folders: Sequence[Path]) -> Iterator[Path]:
    """``iteration-<n>.ckpt`` of the first folder, the highest first, then those of the next."""
    for folder in folders:
        found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _NAME.fullmatch(path.name))]
        yield from (path for _, path in sorted(found, reverse=True))


def _content_problem(file: Path, sharded: bool, resumable: bool) -> str | None:
    """Reads the structure; tensors stay on the disk."""
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        return f"holds more than data, which is not run: {_line(error)}"
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"cannot be read: {_line(error)}"
    if not isinstance(content, dict) or not (sharded or "state_dict" in content):
        return "is no checkpoint of this project"
    return lacking(content, sharded) if resumable else None


def _state_sizes(checkpoint: Mapping[str, Any]) -> list[int]:
    """Of each optimiser, how many parameters have a state."""
    states = checkpoint.get("optimizer_states") or ()
    return [len(state.get("state", ())) for state in states if isinstance(state, Mapping)]


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
