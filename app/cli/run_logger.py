"""TensorBoard in a folder that no other run has."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(TensorBoardLogger):
    """Lightning's logger, which takes the next free ``version_<n>`` in one step.

    Lightning looks for the highest number and makes the folder later: two runs that are started together share it, and
    each overwrites what the other one left. And it makes an event of every number: here an iteration's are one.

    Args:
        root: the folder of all runs.
        name: of the run.
        continued: the number of the run that goes on, in its own folder; null for a new one.
    """

    def __init__(self, root: str | Path, name: str, continued: int | None = None) -> None:
        super().__init__(root, name, continued)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Leaves out the epoch, which Lightning adds: here it is the whole run. What is no number is Lightning's to
        write."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        shown = {name: value for name, value in metrics.items() if name != "epoch"}
        plain = all(isinstance(value, int | float) for value in shown.values())
        if not shown or not plain or not isinstance(self.experiment, SummaryWriter):
            super().log_metrics(shown, step)
            return
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in shown.items()]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)

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
