"""A tokenizer's chat template: rendered, and asked what it writes around the turns."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from app.data.pinned_date import pinned_date
from app.errors import ConfigurationError
from app.grading.thinking import KNOWN_MARKERS, Thinking, ThoughtMarkers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

DEFAULT_DATE = "2024-07-26"
"""What templates that print today's date print: the one that LLaMA-3's falls back to where it has no clock."""
USER, ASSISTANT, SYSTEM, THOUGHT = "Qx7userQx7", "Qx7assistantQx7", "Qx7systemQx7", "Qx7thoughtQx7"
"""Texts that no template holds."""
_MARKER = r"<[^<>\s]{1,40}>|\[/?[A-Z_]{3,30}\]|◁[^◁▷\s]{1,30}▷"
_TRIED_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Names under which templates of today look for an assistant's thought."""


class ChatTemplate:
    """Renders messages as text, the same one on any day.

    Args:
        tokenizer: has a chat template.
        arguments: further variables of the template, such as ``enable_thinking``.
        today: what the template takes for today, as YYYY-MM-DD.
        name: which of several named templates; by default that named ``default``.

    Raises:
        ConfigurationError: there is no template of that name.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        arguments: Mapping[str, Any] | None = None,
        today: str = DEFAULT_DATE,
        name: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = _checked_name(tokenizer, name)
        self.arguments, self.today = dict(arguments or {}), date.fromisoformat(today)

    def render(self, messages: Sequence[Message], answer_next: bool = True) -> str:
        """The text of a conversation, up to where the assistant begins if ``answer_next``.

        Raises:
            ConfigurationError: the template refuses the messages, or fails.
        """
        from jinja2 import TemplateError

        try:
            with pinned_date(self.today):
                text: str = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=self.name,
                    add_generation_prompt=answer_next,
                    tokenize=False,
                    **self.arguments,
                )
        except Exception as error:  # a template is a program of its own, which may fail in any way
            refused = type(error) is TemplateError
            message = " ".join(str(error).split())
            raise ConfigurationError(
                f"the tokenizer's chat template refuses the messages: {message}"
                if refused
                else f"the tokenizer's chat template fails ({type(error).__name__}: {message}); a variable that it "
                "needs may be given under template_arguments",
                key="prompt",
            ) from error
        return text

    @cached_property
    def assistant_start(self) -> str:
        """What stands between the user's words and the assistant's first token."""
        return self.render([_turn("user", USER)]).rpartition(USER)[2]

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the template writes where none is given, and leaves out for another; often empty."""
        try:
            given = self._before_user(_turn("system", SYSTEM))
        except ConfigurationError:  # it takes no system prompt
            return ""
        head, found, tail = given.partition(SYSTEM)
        plain = self._before_user()
        closing = re.match(rf"\s*({_MARKER})", tail)
        end = plain.find(closing[1] if closing else tail, len(head))
        return plain[len(head) : end].strip() if found and plain.startswith(head) and end >= 0 else ""

    def _before_user(self, *messages: Message) -> str:
        return self.render([*messages, _turn("user", USER)]).partition(USER)[0]

    @cached_property
    def turn_end(self) -> list[int]:
        """Token ids that the template writes behind an assistant's words, up to the token that ends its turn; empty
        where no special token stands there. Found by rendering such a turn."""
        messages = [_turn("user", USER), _turn("assistant", ASSISTANT)]
        try:
            _, found, tail = self.render(messages, answer_next=False).rpartition(ASSISTANT)
        except ConfigurationError:  # it takes no assistant's turn
            return []
        if not found:
            return []
        ids: list[int] = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        if eos in ids:
            return ids[: ids.index(eos) + 1]
        added = self.tokenizer.added_tokens_decoder
        places = [place for place, token in enumerate(ids) if token in added and str(added[token]).strip()]
        if not places:
            return []
        # Where the template begins the assistant's next turn unasked, later tokens are of that one.
        unasked = self.render(messages[:1]) == self.render(messages[:1], answer_next=False)
        return ids[: places[0 if unasked else -1] + 1]

    @cached_property
    def thinking(self) -> Thinking:
        """How thoughts are marked after this template, and whether its prompts end in an open one."""
        own = self._own_markers
        known = KNOWN_MARKERS if own is None else (own, *KNOWN_MARKERS)
        return Thinking(known).after(self.assistant_start)

    @property
    def _own_markers(self) -> ThoughtMarkers | None:
        """Those around a thought that the template renders, where no known ones stand there."""
        thought = {"role": "assistant", "content": ASSISTANT, **dict.fromkeys(_TRIED_FIELDS, THOUGHT)}
        try:
            text = self.render([_turn("user", USER), thought], answer_next=False)
        except ConfigurationError:
            return None
        before, found, after = text.rpartition(USER)[2].partition(THOUGHT)
        if not found or ASSISTANT not in after or Thinking().after(before).opened:
            return None
        opening, closing = re.search(rf"({_MARKER})\s*\Z", before), re.match(rf"\s*({_MARKER})", after)
        if not opening or not closing:
            return None
        plain = self.render([_turn("user", USER), _turn("assistant", ASSISTANT)], answer_next=False).rpartition(USER)[2]
        if opening[1] not in plain:
            return ThoughtMarkers(opening[1], closing[1])
        # The marker begins every message, and a word before it says which kind.
        kind = before.removeprefix(os.path.commonprefix([before, plain])).strip()
        return ThoughtMarkers(kind, closing[1], closing_alone=False) if opening[1] in kind else None


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _checked_name(tokenizer: "PreTrainedTokenizerBase", name: str | None) -> str | None:
    templates = tokenizer.chat_template
    names = sorted(templates) if isinstance(templates, dict) else []
    wanted = "default" if name is None else name
    if name is None and not isinstance(templates, dict):
        return None
    if wanted not in names:
        listed = f"those named {', '.join(names)}" if names else "one without a name"
        raise ConfigurationError(
            f"the tokenizer has no chat template named {wanted!r}, but {listed}", key="prompt.chat_template"
        )
    return wanted
