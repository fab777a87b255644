"""A table of sample completions in TensorBoard."""

from typing import TYPE_CHECKING, Any

from lightning import Callback, Trainer

from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.rollout.experience import Rollout
    from modules.grpo_lambda import GRPOLambdaModule


class CompletionsTable(Callback):
    """Writes a few prompts with all their completions and rewards under TensorBoard's Text tab.

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
        table = self.table(pl_module.experience.rollout)
        for logger in trainer.loggers:
            add_text = getattr(logger.experiment, "add_text", None)
            if add_text:
                add_text("completions", table, batch_idx)

    def table(self, rollout: "Rollout") -> str:
        """Markdown; one row a completion."""
        names = list(rollout.reward_columns)
        head = ["problem", "gold", "completion", "tokens", "finish", *names, "reward"]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        size = rollout.group_size
        for index, row in enumerate(rollout.rows[: self.prompts * size]):
            problem = rollout.batch.problems[index // size]
            scores = [f"{rollout.reward_columns[name][index]:.3g}" for name in names]
            texts = [self._cell(text) for text in (problem.problem, problem.answer, rollout.texts[index])]
            numbers = [str(len(row.token_ids)), row.finish_reason, *scores, f"{rollout.rewards[index]:.3g}"]
            lines.append("| " + " | ".join(texts + numbers) + " |")
        return "\n".join(lines)

    def _cell(self, text: str) -> str:
        """Text that can neither break the table nor be read as markup."""
        half = self.max_characters // 2
        short = text if len(text) <= self.max_characters else f"{text[:half]} … {text[-half:]}"
        escaped = short.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("\\", "&#92;")
        return escaped.replace("`", "&#96;").replace("*", "&#42;").replace("_", "&#95;").replace("\n", "<br>")
