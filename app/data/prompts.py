"""From a problem to the token ids that the policy reads."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.data.problems import Problem
from app.data.rows import nearest
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PLACEHOLDER = "{problem}"
ChatUse = Literal["never", "if_available", "always"]
OverlongPolicy = Literal["drop", "refuse", "truncate"]


@dataclass(frozen=True)
class Style:
    """One way of asking.

    Attributes:
        template: the user's turn, or the whole prompt where no chat template is applied; holds ``{problem}``
            once.
        system: the system prompt that belongs to it, if any.
        chat: whether the tokenizer's chat template is applied.
    """

    template: str
    system: str | None = None
    chat: ChatUse = "never"


_STEPS = "Please reason step by step, and put your final answer within \\boxed{}."
STYLES: dict[str, Style] = {
    # The problem and nothing else, as one turn of a chat where the tokenizer knows chats.
    "raw": Style(PLACEHOLDER, chat="if_available"),
    # For base models.
    "boxed": Style(f"Question: {PLACEHOLDER}\n{_STEPS}\nAnswer:"),
    # What the Qwen2.5-Math-Instruct models and the R1 distillations were tuned to read.
    "qwen_math": Style(PLACEHOLDER, system=_STEPS, chat="always"),
    # After DeepSeek-R1-Zero; the box inside <answer> is for the grader.
    "r1": Style(
        "A conversation between a user and an assistant. The assistant first reasons about the question, "
        "then gives the answer. The reasoning stands between <think> and </think>, the answer between "
        "<answer> and </answer>, that is: <think> reasoning </think> <answer> answer </answer>. "
        "The final result stands in \\boxed{} "
        f"inside <answer>.\nUser: {PLACEHOLDER}\nAssistant:"
    ),
    # For LLaMA-3 instruction models, which take the task in the user's turn.
    "llama": Style(
        "Solve the following math problem step by step. End with a line of the form: "
        f"The final answer is \\boxed{{answer}}.\n\nProblem: {PLACEHOLDER}",
        chat="always",
    ),
}


@dataclass(frozen=True)
class PromptSettings:
    """How problems become prompts.

    Attributes:
        style: one of :data:`STYLES`; ignored where ``template_file`` is given.
        template_file: own template: a UTF-8 text that holds ``{problem}`` exactly once.
        system_prompt: replaces the style's own; an empty string leaves it out.
        chat: ``always`` applies the tokenizer's chat template, ``if_available`` where there is one, ``never``
            takes the template as the whole prompt. The style's own if not given.
        max_prompt_tokens: longest prompt.
        overlong: what becomes of a longer one: ``drop`` the problem (counted), ``refuse`` the dataset, or
            ``truncate`` the problem's end. Benchmarks drop nothing: there ``drop`` refuses. Dropping tokenises the
            whole training set once before training, about a millisecond a problem.
    """

    style: str = "raw"
    template_file: str | None = None
    system_prompt: str | None = None
    chat: ChatUse | None = None
    max_prompt_tokens: int | None = None
    overlong: OverlongPolicy = "drop"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigurationError(f"unknown style {self.style!r}; {nearest(self.style, STYLES)}", key="prompt.style")
        if self.chat not in (None, "never", "if_available", "always"):
            raise ConfigurationError(f"is never, if_available or always, got {self.chat!r}", key="prompt.chat")
        if self.overlong not in ("drop", "refuse", "truncate"):
            raise ConfigurationError(f"is drop, refuse or truncate, got {self.overlong!r}", key="prompt.overlong")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigurationError(
                f"must be at least 1, got {self.max_prompt_tokens}", key="prompt.max_prompt_tokens"
            )
        if self.template_file is not None:
            _read_template(self.template_file)

    def resolve(self) -> Style:
        """The style with everything that these settings replace."""
        style = STYLES[self.style]
        template = style.template if self.template_file is None else _read_template(self.template_file)
        own_chat: ChatUse = style.chat if self.template_file is None else "if_available"
        system = style.system if self.template_file is None else None
        if self.system_prompt is not None:
            system = self.system_prompt or None
        return Style(template, system, self.chat or own_chat)


DEFAULT_PROMPT = PromptSettings()


class PromptEncoder:
    """Settings and a tokenizer together.

    Raises:
        ConfigurationError: the style needs a chat template and the tokenizer has none, or its chat template
            does not take the messages; or a system prompt could not be shown.
    """

    def __init__(self, settings: PromptSettings, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.settings, self.tokenizer, self.style = settings, tokenizer, settings.resolve()
        has_template = tokenizer.chat_template is not None
        if self.style.chat == "always" and not has_template:
            raise ConfigurationError(
                "the tokenizer has no chat template, which this style needs: take style boxed or r1, or chat: never",
                key="prompt.chat",
            )
        self._chat = has_template and self.style.chat != "never"
        self._try_chat_template()

    def text(self, statement: str) -> str:
        """The prompt for a problem's statement, chat template applied up to where the assistant begins."""
        turn = self.style.template.replace(PLACEHOLDER, statement)
        if not self._chat:
            return turn if self.style.system is None else f"{self.style.system}\n\n{turn}"
        messages = [{"role": "user", "content": turn}]
        if self.style.system is not None:
            messages.insert(0, {"role": "system", "content": self.style.system})
        text: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def ids(self, statement: str) -> list[int]:
        """The prompt's token ids, whatever their number."""
        return self._ids([statement])[0]

    def encode(self, problems: Sequence[Problem]) -> list[list[int]]:
        """The token ids of each problem's prompt, none longer than ``max_prompt_tokens``.

        Raises:
            ConfigurationError: a prompt is longer, and ``overlong`` is not ``truncate``.
        """
        encoded = self._ids([problem.problem for problem in problems])
        return [self._within_limit(problem, ids) for problem, ids in zip(problems, encoded, strict=True)]

    def is_overlong(self, problem: Problem) -> bool:
        """Whether the problem's prompt is longer than ``max_prompt_tokens``."""
        limit = self.settings.max_prompt_tokens
        return limit is not None and len(self.ids(problem.problem)) > limit

    def _ids(self, statements: list[str]) -> list[list[int]]:
        if not statements:
            return []
        texts = [self.text(statement) for statement in statements]
        # A chat template writes the tokenizer's begin-of-text token itself.
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=not self._chat)["input_ids"]
        return encoded

    def _within_limit(self, problem: Problem, ids: list[int]) -> list[int]:
        limit = self.settings.max_prompt_tokens
        if limit is None or len(ids) <= limit:
            return ids
        if self.settings.overlong != "truncate":
            raise ConfigurationError(
                f"the prompt of {problem.source} {problem.id} has {len(ids)} tokens, over {limit}: "
                "raise the limit, or set overlong: truncate",
                key="prompt.max_prompt_tokens",
            )
        return self._truncated(problem.problem, ids, limit)

    def _truncated(self, statement: str, ids: list[int], limit: int) -> list[int]:
        """Cuts the statement's end and leaves the rest of the prompt whole."""
        statement_ids: list[int] = self.tokenizer(statement, add_special_tokens=False)["input_ids"]
        while len(ids) > limit and statement_ids:
            del statement_ids[-(len(ids) - limit) :]
            ids = self.ids(self.tokenizer.decode(statement_ids, skip_special_tokens=False))
        if len(ids) > limit:
            raise ConfigurationError(
                f"the prompt has {len(ids)} tokens without any problem, over {limit}",
                key="prompt.max_prompt_tokens",
            )
        return ids

    def _try_chat_template(self) -> None:
        if not self._chat:
            return
        from jinja2 import TemplateError

        try:
            shown = self.text("1 + 1")
        except TemplateError as error:
            raise ConfigurationError(
                f"the tokenizer's chat template refuses the messages: {error}", key="prompt"
            ) from error
        if self.style.system is not None and self.style.system not in shown:
            raise ConfigurationError(
                "the tokenizer's chat template shows no system prompt: set system_prompt: '' "
                "and write it into the template",
                key="prompt.system_prompt",
            )


def _read_template(path: str) -> str:
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no file {path}", key="prompt.template_file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}", key="prompt.template_file") from error
    if text.count(PLACEHOLDER) != 1:
        raise ConfigurationError(
            f"{path} must hold {PLACEHOLDER} exactly once, holds it {text.count(PLACEHOLDER)} times",
            key="prompt.template_file",
        )
    return text.removesuffix("\n")
