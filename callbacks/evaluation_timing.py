"""When a run evaluates its policy, and what Lightning leaves undone of it where a run resumes or ends."""

import logging

from lightning import Trainer

log = logging.getLogger(__name__)


def iterations_done(trainer: Trainer) -> int:
    """Whole iterations: what is merely ready is of one that a signal cut off, too."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed


def is_due(trainer: Trainer, done: int) -> bool:
    """Whether an evaluation follows iteration ``done``, counted from 1."""
    interval = trainer.val_check_batch
    return interval is not None and interval != float("inf") and done % interval == 0


def run_validation(trainer: Trainer) -> None:
    """What Lightning does in the course of training when an evaluation is due, before its first iteration."""
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    loop.restarting = False
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def warn_of_unevaluated_end(trainer: Trainer) -> None:
    """Warns where the policy that the run ends with is not evaluated."""
    total, interval = int(trainer.num_training_batches), trainer.val_check_batch
    if trainer.enable_validation and isinstance(interval, int) and total % interval:
        last = (
            f"the last evaluation is after iteration {total - total % interval}"
            if total > interval
            else ("no evaluation follows the one before the first iteration")
        )
        log.warning(
            "trainer.val_check_interval is %d and the run has %d iterations: %s, and the policy at its end is not "
            "evaluated",
            interval,
            total,
            last,
        )
