"""From a problem to the token ids that the policy reads."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.data.chat import DEFAULT_DATE, ChatTemplate
from app.data.problems import Problem, Turn
from app.data.rows import nearest
from app.errors import ConfigurationError
from app.grading.thinking import KNOWN_MARKERS, NO_OPEN_THOUGHT, Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    # What the Qwen2.5-Math-Instruct models were tuned to read.
    "qwen_math": Style(PLACEHOLDER, system=_STEPS, chat="always"),
    # For DeepSeek-R1 and its distillations, whose authors advise against a system prompt.
    "deepseek_r1": Style(f"{PLACEHOLDER}\n{_STEPS}", chat="always"),
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
        style: one of :data:`STYLES`; by default that which the policy was trained with, where its folder or checkpoint
            says so, and otherwise ``fallback``. Ignored where ``template`` or ``template_file`` is given.
        fallback: see ``style``.
        template: own template: a text that holds ``{problem}`` exactly once. One with the tokenizer's chat markup in
            it is the whole prompt, any other the user's turn.
        template_file: the same as a UTF-8 file, taken as it stands, its last newline included.
        system_prompt: replaces the style's own; an empty string leaves it out, that of the chat template too.
        chat: ``always`` applies the tokenizer's chat template, ``if_available`` where there is one, ``never``
            takes the template as the whole prompt. The style's own if not given.
        chat_template: which of the tokenizer's named chat templates; by default that named ``default``.
        template_arguments: further variables of the chat template, such as ``enable_thinking: false``.
        date: what chat templates that print today's date take for today.
        max_prompt_tokens: longest prompt.
        overlong: what becomes of a longer one: ``drop`` the problem (counted), ``refuse`` the dataset, or
            ``truncate`` the problem's end. Benchmarks drop nothing: there ``drop`` refuses. Dropping tokenises the
            whole training set once before training, about a millisecond a problem.
    """

    style: str | None = None
    fallback: str = "raw"
    template: str | None = None
    template_file: str | None = None
    system_prompt: str | None = None
    chat: ChatUse | None = None
    chat_template: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    date: str = DEFAULT_DATE
    max_prompt_tokens: int | None = None
    overlong: OverlongPolicy = "drop"

    def __post_init__(self) -> None:
        for key, style in (("style", self.style), ("fallback", self.fallback)):
            if style is not None and style not in STYLES:
                raise ConfigurationError(f"unknown style {style!r}; {nearest(style, STYLES)}", key=f"prompt.{key}")
        if self.chat not in (None, "never", "if_available", "always"):
            raise ConfigurationError(f"is never, if_available or always, got {self.chat!r}", key="prompt.chat")
        if self.overlong not in ("drop", "refuse", "truncate"):
            raise ConfigurationError(f"is drop, refuse or truncate, got {self.overlong!r}", key="prompt.overlong")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigurationError(
                f"must be at least 1, got {self.max_prompt_tokens}", key="prompt.max_prompt_tokens"
            )
        if self.template is not None and self.template_file is not None:
            raise ConfigurationError("give it or template_file", key="prompt.template")
        _check_date(self.date)
        self.own_template()

    def own_template(self) -> str | None:
        """The text of ``template`` or ``template_file``. Raises ConfigurationError for a file that is none."""
        if self.template is not None:
            return _with_placeholder(self.template, "the text", "prompt.template")
        return None if self.template_file is None else _read_template(self.template_file)

    def resolve(self) -> Style:
        """The style with everything that these settings replace."""
        style = STYLES[self.style or self.fallback]
        own = self.own_template()
        if own is not None:
            style = Style(own, chat="if_available")
        system = style.system if self.system_prompt is None else self.system_prompt or None
        return Style(style.template, system, self.chat or style.chat)


class PromptEncoder:
    """Settings and a tokenizer together.

    Args:
        settings: see there.
        tokenizer: the policy's.
        context: tokens of the model's longest row, in which a prompt must leave room; None for no limit.

    Attributes:
        thinking: how thoughts are marked in completions of these prompts, and whether the prompts end in one.
        chat: the chat template where one is applied, otherwise None.

    Raises:
        ConfigurationError: the style needs a chat template and the tokenizer has none, or its chat template
            does not take the messages; or a system prompt could not be shown, or not left out.
    """

    def __init__(
        self, settings: PromptSettings, tokenizer: "PreTrainedTokenizerBase", context: int | None = None
    ) -> None:
        self.settings, self.tokenizer, self.style = settings, tokenizer, settings.resolve()
        self.context = context
        self.chat = self._chat_template()
        self._system = self.style.system
        if self.chat is not None:
            self._system = self._checked_system(self.chat)
        self.thinking = self.chat.thinking if self.chat else opened_by_text(self.style.template)

    def text(self, statement: str, history: Sequence[Turn] = ()) -> str:
        """The prompt for a problem's statement, chat template applied up to where the assistant begins.

        Args:
            statement: of the problem.
            history: the turns before it. A system turn among them takes the place of the style's.

        Raises:
            ConfigurationError: a history without a chat template.
        """
        turn = self.style.template.replace(PLACEHOLDER, statement)
        if self.chat is None:
            if history:
                raise ConfigurationError(
                    "a problem that goes on a conversation needs a chat template, which this style does not apply",
                    key="prompt.chat",
                )
            return turn if self._system is None else f"{self._system}\n\n{turn}"
        messages = [{"role": role, "content": content} for role, content in (*history, ("user", turn))]
        if self._system is not None and not any(role == "system" for role, _ in history):
            messages.insert(0, {"role": "system", "content": self._system})
        return self.chat.render(messages)

    def ids(self, statement: str, history: Sequence[Turn] = ()) -> list[int]:
        """The prompt's token ids, whatever their number."""
        return self._ids([self.text(statement, history)])[0]

    def encode(self, problems: Sequence[Problem]) -> list[list[int]]:
        """The token ids of each problem's prompt, none longer than ``max_prompt_tokens``.

        Raises:
            ConfigurationError: a prompt is longer, and ``overlong`` is not ``truncate``, or leaves no room in the
                context; the chat template refuses a problem's history.
        """
        encoded = self._ids([self._text_of(problem) for problem in problems])
        return [self._within_limit(problem, ids) for problem, ids in zip(problems, encoded, strict=True)]

    def is_overlong(self, problem: Problem) -> bool:
        """Whether the problem's prompt is longer than ``max_prompt_tokens``."""
        limit = self.settings.max_prompt_tokens
        return limit is not None and len(self._ids([self._text_of(problem)])[0]) > limit

    def _text_of(self, problem: Problem) -> str:
        try:
            return self.text(problem.problem, problem.history)
        except ConfigurationError as error:
            rule = str(error).removeprefix(f"{error.key}: ")
            raise ConfigurationError(f"{problem.source} {problem.id}: {rule}", key=error.key) from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """A chat template writes the begin-of-text token itself, a template of the user's may; others get theirs here.
        An end-of-text token, which some tokenizers put behind every text, would end the prompt: it is left out."""
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        begin = self._begin_ids
        return [ids if ids[: len(begin)] == begin else begin + ids for ids in encoded]

    @cached_property
    def _begin_ids(self) -> list[int]:
        """What the tokenizer puts before every text that is no chat."""
        if self.chat is not None:
            return []
        bare, whole = (self.tokenizer("1", add_special_tokens=added)["input_ids"] for added in (False, True))
        places = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        return list(whole[: places[0]]) if places else []

    def _within_limit(self, problem: Problem, ids: list[int]) -> list[int]:
        limit = self.settings.max_prompt_tokens
        if limit is None or len(ids) <= limit:
            self._check_context(f"{problem.source} {problem.id}", ids)
            return ids
        if self.settings.overlong != "truncate":
            raise ConfigurationError(
                f"the prompt of {problem.source} {problem.id} has {len(ids)} tokens, over {limit}: "
                "raise the limit, or set overlong: truncate",
                key="prompt.max_prompt_tokens",
            )
        return self._truncated(problem, ids, limit)

    def check_context(self, problems: Iterable[Problem], place: Callable[[Problem], str]) -> None:
        """Refuses problems whose prompts leave no room in the context; ``place`` names the row of one.

        Tokenises only what is long enough: a token stands for at least one byte, apart from a few that are added.
        """
        if self.context is None:
            return
        around = len(self.text("1").encode()) + 64
        for problem in problems:
            turns = (problem.problem, *(content for _, content in problem.history))
            if around + sum(len(turn.encode()) + 64 for turn in turns) >= self.context:
                self._check_context(place(problem), self._ids([self._text_of(problem)])[0])

    def _check_context(self, place: str, ids: list[int]) -> None:
        if self.context is not None and len(ids) >= self.context:
            raise ConfigurationError(
                f"the prompt of {place} has {len(ids)} tokens, which leave no room in the model's context of "
                f"{self.context}: set a limit, above which problems are dropped",
                key="data.prompt.max_prompt_tokens",
            )

    def _truncated(self, problem: Problem, ids: list[int], limit: int) -> list[int]:
        """Cuts the statement's end and leaves the rest of the prompt whole."""
        statement_ids: list[int] = self.tokenizer(problem.problem, add_special_tokens=False)["input_ids"]
        while len(ids) > limit and statement_ids:
            del statement_ids[-(len(ids) - limit) :]
            ids = self.ids(self.tokenizer.decode(statement_ids, skip_special_tokens=False), problem.history)
        if len(ids) > limit:
            raise ConfigurationError(
                f"the prompt has {len(ids)} tokens without any problem, over {limit}",
                key="prompt.max_prompt_tokens",
            )
        return ids

    def _chat_template(self) -> ChatTemplate | None:
        """The chat template where it is to be applied: not around a template that holds its markup already."""
        if self.style.chat == "never":
            return None
        if self.tokenizer.chat_template is None:
            if self.style.chat == "always":
                raise ConfigurationError(
                    "the tokenizer has no chat template, which this style needs: take style boxed or r1, or "
                    "chat: never",
                    key="prompt.chat",
                )
            return None
        settings = self.settings
        chat = ChatTemplate(self.tokenizer, settings.template_arguments, settings.date, settings.chat_template)
        markup = self._markup(chat)
        if markup is None:
            return chat
        if settings.chat is not None:
            raise ConfigurationError(
                f"the template holds {markup}, chat markup of its own, and would be wrapped in it again: chat: never",
                key="prompt.chat",
            )
        return None

    def _markup(self, chat: ChatTemplate) -> str | None:
        """A special token in the template that the chat template writes around a user's turn; None without one."""
        shown, template = chat.render([{"role": "user", "content": "1 + 1"}]), self.style.template
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        return min((token for token in special if token in template and token in shown), default=None)

    def _checked_system(self, chat: ChatTemplate) -> str | None:
        """The system prompt that is to be given to the template; an empty one takes away the template's own."""
        wanted = self.style.system
        if wanted is not None:
            shown = chat.render([{"role": "system", "content": wanted}, {"role": "user", "content": "1 + 1"}])
            if wanted.strip() not in shown:  # templates trim
                raise ConfigurationError(
                    "the tokenizer's chat template shows no system prompt: set system_prompt: '' "
                    "and write it into the template",
                    key="prompt.system_prompt",
                )
            return wanted
        default = chat.default_system
        if self.settings.system_prompt is None or not default:
            return None
        if default in chat.render([{"role": "system", "content": ""}, {"role": "user", "content": "1 + 1"}]):
            raise ConfigurationError(
                f"the tokenizer's chat template writes one of its own ({default[:60]!r}) that an empty one does not "
                "replace: give another, or chat: never with a template that holds the markup",
                key="prompt.system_prompt",
            )
        return ""


def opened_by_text(template: str) -> Thinking:
    """How completions of a prompt without a chat template begin: within a thought where it ends in an opening marker.
    One further ahead may belong to the instructions."""
    end = template.rpartition(PLACEHOLDER)[2].rstrip().casefold()
    markers = [each for each in KNOWN_MARKERS if end.endswith(each.opening.casefold())]
    return Thinking(opened=markers[0].opening) if markers else NO_OPEN_THOUGHT


def _check_date(text: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"is a day as YYYY-MM-DD, got {text!r}", key="prompt.date") from error


def _read_template(path: str) -> str:
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no file {Path(path).absolute()}", key="prompt.template_file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}", key="prompt.template_file") from error
    return _with_placeholder(text, path, "prompt.template_file")


def _with_placeholder(text: str, where: str, key: str) -> str:
    if text.count(PLACEHOLDER) != 1:
        raise ConfigurationError(
            f"{where} must hold {PLACEHOLDER} exactly once, holds it {text.count(PLACEHOLDER)} times", key=key
        )
    return text


DEFAULT_PROMPT = PromptSettings()
