"""Where a run keeps its files."""

from pathlib import Path

from lightning import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The logger's folder (``runs/<name>/version_<n>``), or the trainer's root where there is no logger."""
    return Path(trainer.log_dir or trainer.default_root_dir)
