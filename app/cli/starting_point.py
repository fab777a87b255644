"""Where a run goes on from: ``--ckpt_path``, looked at before anything slow starts."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from app.errors import ConfigurationError
from app.policy.sources import nearest_sibling
from app.storage.checkpoints import (
    checkpoints_newest_first,
    newest_intact,
    problem_of,
    runs_newest_first,
    version_of,
)

LAST = "last"
"""Stands for the newest intact checkpoint of the run's name: what a restart script passes always."""


def starting_point(given: str | None, places: Sequence[Path], fit: bool, verify: bool) -> str | None:
    """The checkpoint that a run goes on from, or whose weights are evaluated; None for none.

    Rank 0 looks for all: on the others :data:`LAST` gives None, and :class:`modules.checked_restore.CheckedRestore`
    tells them what it found.

    Args:
        given: the value of ``--ckpt_path``.
        places: folders of checkpoints in which :data:`LAST` is looked for, the newest run's first.
        fit: whether the run goes on; otherwise the weights alone are needed.
        verify: compare the checksums of all that is read.

    Raises:
        ConfigurationError: it is damaged, or not a checkpoint; the message names the newest intact one beside it.
    """
    if given is None or "://" in given:
        return given
    if rank_zero_only.rank != 0:
        return None if given == LAST else given
    if given == LAST:
        return _last(places, fit, verify)
    path = Path(given).expanduser()
    problem = problem_of(path, verify, resumable=fit)
    if problem is not None:
        raise ConfigurationError(f"{given}{_target(path)} {problem}{_instead(path, verify)}", key="ckpt_path")
    return str(path)


def places_of(root: Path, name: str, folder: str | None) -> list[Path]:
    """Where the checkpoints of the runs called ``name`` lie, the newest run's first.

    Args:
        root: the trainer's root folder.
        name: of the run.
        folder: ``checkpoint.folder``, where it is set.
    """
    if folder is not None:
        return [Path(folder)]
    return [run / "checkpoints" for run in runs_newest_first(root / name)]


def continued_run(start: Path, runs: Path, meant: bool) -> int | None:
    """The number of the run that goes on from ``start`` in its own folder; None for a run that branches off.

    A run goes on from the newest checkpoint in ``<runs>/version_<n>/checkpoints``. From an older one it branches off
    into a folder of its own, so that nothing of the former is written over.

    Args:
        start: a checkpoint.
        runs: the folder of all runs of the name.
        meant: the newest intact one was asked for, and found in ``start``: what is newer is damaged.
    """
    if "://" in str(start):
        return None
    checkpoint = start.expanduser().resolve()
    folder = checkpoint.parent
    number = version_of(folder.parent)
    if folder.name != "checkpoints" or number is None or folder.parent.parent != runs.resolve():
        return None
    return number if meant or next(checkpoints_newest_first([folder]), None) == checkpoint else None


def _last(places: Sequence[Path], fit: bool, verify: bool) -> str | None:
    found = newest_intact(places, verify)
    for path, problem in found.passed_over:
        rank_zero_warn(f"--ckpt_path last: {path} is passed over, for it {problem}")
    if found.path is not None:
        rank_zero_info(f"--ckpt_path last: {found.path}")
        return str(found.path)
    if found.passed_over:
        message = f"none of the {len(found.passed_over)} checkpoints is intact; the newest, {found.passed_over[0][0]}, "
        message += f"{found.passed_over[0][1]}; leave ckpt_path out to begin anew"
        raise ConfigurationError(message, key="ckpt_path")
    if not fit:
        raise ConfigurationError("last: there is no checkpoint of this name yet", key="ckpt_path")
    rank_zero_info("--ckpt_path last: there is no checkpoint of this name yet; the run begins")
    return None


def _target(path: Path) -> str:
    return f" ({path.resolve().name})" if path.is_symlink() else ""


def _instead(path: Path, verify: bool) -> str:
    if not path.parent.is_dir():
        return nearest_sibling(path)
    found = newest_intact([path.parent], verify)
    return f"; the newest intact one beside it is {found.path}" if found.path else "; there is no intact one beside it"
