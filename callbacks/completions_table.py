"""A table of sample completions."""

from typing import TYPE_CHECKING, Any

from lightning import Callback, Trainer

from app.errors import ConfigurationError
from callbacks.loggers import log_table
from callbacks.markdown import literal

if TYPE_CHECKING:
    from app.rollout.experience import Rollout
    from modules.grpo_lambda import GRPOLambdaModule


class CompletionsTable(Callback):
    """Writes a few problems with all their completions and rewards, in TensorBoard under the Text tab, and there above
    them the first one's prompt as the policy reads it.

    Args:
        every_n_iterations: how often.
        prompts: how many of this rank's prompts.
        max_characters: of a cell; longer texts are cut in the middle.
    """

    def __init__(self, every_n_iterations: int = 10, prompts: int = 2, max_characters: int = 1000) -> None:
        for name, value in (("every_n_iterations", every_n_iterations), ("prompts", prompts)):
            if value < 1:
                raise ConfigurationError(f"must be at least 1, got {value}", key=f"completions.{name}")
        self.every_n_iterations = every_n_iterations
        self.prompts = prompts
        self.max_characters = max_characters

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every_n_iterations or pl_module.experience is None or not trainer.is_global_zero:
            return
        rollout = pl_module.experience.rollout
        prompt = [
            f"{literal(name)}: {literal(self._cut(value))}"
            for name, value in pl_module.show_prompt(rollout.batch).rows()
        ]
        columns, rows = self.cells(rollout)
        log_table(trainer.loggers, "completions", columns, rows, batch_idx, "\n\n".join(["first prompt", *prompt]))

    def cells(self, rollout: "Rollout") -> tuple[list[str], list[list[str]]]:
        """The table's columns and its rows, one a completion."""
        names = list(rollout.reward_columns)
        columns = ["problem", "gold", "completion", "tokens", "finish", *names, "reward"]
        size, rows = rollout.group_size, []
        for index, row in enumerate(rollout.rows[: self.prompts * size]):
            problem = rollout.batch.problems[index // size]
            scores = [f"{rollout.reward_columns[name][index]:.3g}" for name in names]
            texts = [self._cut(text) for text in (problem.problem, problem.answer, rollout.texts[index])]
            rows.append([*texts, str(len(row.token_ids)), row.finish_reason, *scores, f"{rollout.rewards[index]:.3g}"])
        return columns, rows

    def _cut(self, text: str) -> str:
        half = self.max_characters // 2
        return text if len(text) <= self.max_characters else f"{text[:half]} … {text[-half:]}"
