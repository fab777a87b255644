"""One line on a rank that was killed or crashed, from the ranks that it leaves behind."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from app.engines.lost_ranks import Place, ended_ranks, lost_connection
from app.engines.ranks import RolloutRanks
from callbacks.evaluation_timing import iterations_done
from callbacks.iteration_checkpoint import IterationCheckpoint


class LostRank(Callback):
    """Adds a note to the error of a collective whose other end is gone: which rank, in which phase, and what to go on
    from. The command line shows the note instead of pages of traceback."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self._places = RolloutRanks().gathered([Place.here()])[0]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._places or not lost_connection(exception):
            return
        ended = ended_ranks(self._places)
        who = f"rank {', '.join(map(str, ended))} has ended" if ended else "a rank on another machine has ended"
        exception.add_note(f"{who} in {_phase(trainer)}, and the others cannot go on without it; {_resume(trainer)}")


def _phase(trainer: Trainer) -> str:
    if trainer.validating or trainer.sanity_checking:
        done = iterations_done(trainer)
        return f"the evaluation after iteration {done}" if done else "the evaluation before the first iteration"
    batch = trainer.fit_loop.epoch_loop.batch_progress.current
    if batch.started < batch.ready:
        return f"the rollout of iteration {batch.ready}"
    if batch.processed < batch.started:
        return f"the update of iteration {batch.ready}"
    return f"the logging and saving of iteration {batch.ready}" if batch.ready else "the start of the run"


def _resume(trainer: Trainer) -> str:
    saving: list[Any] = [each for each in trainer.callbacks if isinstance(each, IterationCheckpoint)]
    last = saving[0].last if saving else None
    if last is None:
        return "nothing was saved yet, start the run again"
    return f"go on from the last checkpoint: --ckpt_path {last}"
