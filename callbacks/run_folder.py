"""Where a run keeps its files."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning import Trainer

_KNOWN: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()


def run_folder(trainer: Trainer) -> Path:
    """The logger's folder (``runs/<name>/version_<n>``), or the trainer's root where there is no logger.

    A trainer's first call is collective, for Lightning broadcasts the folder of rank 0's logger whenever
    ``trainer.log_dir`` is read; later ones may come from one rank alone. :class:`callbacks.RunSummary` makes it.
    """
    if trainer not in _KNOWN:
        _KNOWN[trainer] = Path(trainer.log_dir or trainer.default_root_dir)
    return _KNOWN[trainer]
