"""What a run goes on from, restored on all ranks together: data alone, all that a run needs, or one line."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn

from app.errors import ConfigurationError
from app.policy.sharding.gathering import give_back
from app.storage.checkpoints import problem_of
from app.storage.shards import data_only


class CheckedRestore(_CheckpointConnector):
    """Takes the place of Lightning's connector, which unpickles what sharded checkpoints bring along, and goes on
    without what a checkpoint lacks."""

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        """Loads the checkpoint that rank 0 has been given; called by the trainer once the policy is there."""
        trainer = self.trainer
        path = trainer.strategy.broadcast(checkpoint_path)
        if path is not None and "://" not in str(path):
            resumable = trainer.state.fn == TrainerFn.FITTING
            problem = problem_of(Path(path), False, resumable) if trainer.is_global_zero else None
            problem = trainer.strategy.broadcast(problem)
            if problem is not None:
                raise ConfigurationError(f"{path} {problem}", key="ckpt_path")
            # A whole checkpoint is loaded layer by layer, past the hook that would give gathered parameters back.
            give_back(trainer.lightning_module.policy)
        self._load(path)

    def _load(self, path: Any) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            with data_only():
                super().resume_start(path, weights_only=True)
        except CheckpointException as error:  # no Exception, and its text is a page
            cause = next(" ".join(str(failure).split()) for failure, _ in error.failures.values())
            raise ConfigurationError(f"{path} does not fit: {cause[:300]}", key="ckpt_path") from error
        except (RuntimeError, UnpicklingError, EOFError) as error:  # such as a damaged part that verify: false let pass
            cause = " ".join(str(error).split())
            raise ConfigurationError(f"{path} cannot be loaded: {cause[:300]}", key="ckpt_path") from error
