"""The credit of single tokens as a page and as pictures: which completion was pushed, and where."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from app.credit.figure import draw
from app.credit.journal import MEGABYTE, Journal
from app.credit.page import write_page
from app.credit.records import Completion, Group, record_of
from app.errors import ConfigurationError, require
from app.policy.decoding import token_texts
from callbacks.evaluation_timing import iterations_done
from callbacks.last_update import last_update
from callbacks.loggers import log_image
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule

log = logging.getLogger(__name__)

JOURNAL = "credit.jsonl"
PAGE = "credit.html"


class CreditPage(Callback):
    """Writes ``credit.html`` into the run's folder: sampled completions token by token, coloured by the credit that
    they got, GRPO's beside that of each λ variant, and a picture of one group under TensorBoard's Images tab.

    Only groups with something to learn from are shown. What is shown is the last update of the iteration. A resumed run
    takes over what the former one has recorded.

    Args:
        every_n_iterations: how often.
        prompts: how many groups of the first rank, at most 8 completions each (those with the highest and the lowest
            advantages) of at most 4096 tokens (the first and the last of a longer one).
        max_megabytes: of the records; beyond them earlier iterations are thinned out, evenly over the run. The page is
            as large.
    """

    def __init__(self, every_n_iterations: int = 10, prompts: int = 2, max_megabytes: float = 32.0) -> None:
        for name, value in (("every_n_iterations", every_n_iterations), ("prompts", prompts)):
            require(value >= 1, "must be at least 1", value, f"credit.{name}")
        require(max_megabytes > 0, "must be above 0", max_megabytes, "credit.max_megabytes")
        self.every_n_iterations = every_n_iterations
        self.prompts = prompts
        self.max_megabytes = max_megabytes
        self._former: str | None = None
        self._path: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where the records lie that a resumed run takes over."""
        return {"journal": None if self._path is None else str(self._path)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._former = state_dict["journal"]

    def setup(self, trainer: Trainer, pl_module: "GRPOLambdaModule", stage: str) -> None:  # type: ignore[override]
        """Refuses a stage in which no token is given credit."""
        if stage == "fit" and not hasattr(pl_module, "last_log_ratio"):
            raise ConfigurationError(
                "shows what GRPO-λ learns from: leave it out of the supervised stage", key="credit"
            )

    def on_train_start(self, trainer: Trainer, pl_module: "GRPOLambdaModule") -> None:  # type: ignore[override]
        self._path = (run_folder(trainer) / JOURNAL).resolve()
        if not trainer.is_global_zero:
            return
        done = iterations_done(trainer)
        former = Path(self._former) if self._former else self._path
        if self._former and not former.is_file():
            log.warning("the credit page begins anew: %s, with what was recorded before, is not there", former)
        if former.is_file():
            self._journal.continue_from(former, done)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every_n_iterations or not trainer.is_global_zero:
            return
        groups = groups_of(pl_module, self.prompts)
        if not groups:
            return
        records = [record_of(group, pl_module.objective) for group in groups]
        dropped = self._journal.append(records)
        if dropped:
            rank_zero_info(f"the credit page is full: {dropped} of the earlier iterations are left out of it now")
        self._write(trainer)
        if trainer.loggers:
            log_image(trainer.loggers, "traces/credit", draw(records[0]), batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: "GRPOLambdaModule") -> None:  # type: ignore[override]
        assert self._path is not None, "training has started"
        if not trainer.is_global_zero:
            return
        if self._path.is_file():
            self._write(trainer)
            rank_zero_info(f"credit of single tokens: {self._path.with_name(PAGE)}")
        else:
            rank_zero_info("no page of token credit: no iteration that it looked at had a group to learn from")

    @property
    def _journal(self) -> Journal:
        assert self._path is not None, "training has started"
        return Journal(self._path, int(self.max_megabytes * MEGABYTE))

    def _write(self, trainer: Trainer) -> None:
        path = self._journal.path
        write_page(path, path.with_name(PAGE), "/".join(path.parts[-3:-1]))


def groups_of(module: "GRPOLambdaModule", prompts: int) -> list[Group]:
    """The first groups of this rank in which a completion has an advantage, as the iteration's last update saw them."""
    experience, _, advantages = last_update(module)
    size = experience.rollout.group_size
    with_credit = [bool(group.any()) for group in advantages.view(-1, size).cpu()]
    return [_group(module, index) for index, learned in enumerate(with_credit) if learned][:prompts]


def _group(module: "GRPOLambdaModule", index: int) -> Group:
    experience, log_ratio, advantages = last_update(module)
    rollout = experience.rollout
    rows = slice(index * rollout.group_size, (index + 1) * rollout.group_size)
    problem = rollout.batch.problems[index]

    def of_rows(values: torch.Tensor | None) -> Any:
        return None if values is None else values[rows].detach().cpu()

    completions = [
        Completion(
            texts=token_texts(module.tokenizer, rollout.rows[row].token_ids),
            reward=rollout.rewards[row],
            finish=rollout.rows[row].finish_reason,
            columns={name: values[row] for name, values in rollout.reward_columns.items()},
        )
        for row in range(rows.start, rows.stop)
    ]
    return Group(
        iteration=experience.iteration + 1,
        problem=problem.problem,
        answer=problem.answer,
        completions=completions,
        mask=of_rows(experience.loss_mask),
        log_ratio=of_rows(log_ratio),
        old_log_probs=of_rows(experience.old_log_probs),
        entropy=of_rows(experience.entropy),
        advantages=of_rows(advantages),
        importance_weights=of_rows(experience.importance_weights),
        counted=of_rows(module.last_counted),
    )
