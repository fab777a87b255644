"""TensorBoard in a folder that no other run has."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(TensorBoardLogger):
    """Lightning's logger, which takes the next free ``version_<n>`` in one step.

    Lightning looks for the highest number and makes the folder later: two runs that are started together share it, and
    each overwrites what the other one left.
    """

    def _get_next_version(self) -> int:
        if rank_zero_only.rank != 0:
            return 0  # ``trainer.log_dir``, which all else goes by, is rank 0's on every rank
        number, root = super()._get_next_version(), Path(self.root_dir)
        root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (root / f"version_{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return number
