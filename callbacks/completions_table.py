"""A table of sample completions in TensorBoard."""

import unicodedata
from typing import TYPE_CHECKING, Any

from lightning import Callback, Trainer

from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.rollout.experience import Rollout
    from modules.grpo_lambda import GRPOLambdaModule


class CompletionsTable(Callback):
    """Writes a few problems with all their completions and rewards under TensorBoard's Text tab, and above them the
    first one's prompt as the policy reads it.

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
            f"{literal(name)}: {self._cell(value)}" for name, value in pl_module.show_prompt(rollout.batch).rows()
        ]
        table = "\n\n".join(["first prompt", *prompt, self.table(rollout)])
        for logger in trainer.loggers:
            add_text = getattr(logger.experiment, "add_text", None)
            if add_text:
                add_text("completions", table, batch_idx)

    def table(self, rollout: "Rollout") -> str:
        """Markdown; one row a completion."""
        names = list(rollout.reward_columns)
        head = ["problem", "gold", "completion", "tokens", "finish", *names, "reward"]
        lines = ["| " + " | ".join(map(literal, head)) + " |", "|" + "---|" * len(head)]
        size = rollout.group_size
        for index, row in enumerate(rollout.rows[: self.prompts * size]):
            problem = rollout.batch.problems[index // size]
            scores = [f"{rollout.reward_columns[name][index]:.3g}" for name in names]
            texts = [self._cell(text) for text in (problem.problem, problem.answer, rollout.texts[index])]
            numbers = [str(len(row.token_ids)), row.finish_reason, *scores, f"{rollout.rewards[index]:.3g}"]
            lines.append("| " + " | ".join(texts + numbers) + " |")
        return "\n".join(lines)

    def _cell(self, text: str) -> str:
        half = self.max_characters // 2
        return literal(text if len(text) <= self.max_characters else f"{text[:half]} … {text[-half:]}")


def literal(text: str) -> str:
    """Markdown that shows ``text`` as it is, in one line: no image that is fetched, no link, no markup, no new row.

    All of ASCII but letters, digits and single spaces becomes character references, whatever it may mean to a renderer.
    """
    lines = text.replace("\r\n", "\n").translate(_LINE_ENDS).split("\n")
    return "<br>".join("".join(map(_character, line)) for line in lines)


_LINE_ENDS = dict.fromkeys(map(ord, "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), "\n")


def _character(character: str) -> str:
    if character.isascii() and (character.isalnum() or character == " "):
        return character
    if unicodedata.category(character) in ("Cc", "Cs") and character != "\t":  # not to be shown, or not to be stored
        return "\N{REPLACEMENT CHARACTER}"
    return f"&#{ord(character)};" if character.isascii() else character
