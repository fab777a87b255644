"""Thoughts: how models mark them, what of a completion lies outside them, and whether a prompt left one open."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class ThoughtMarkers:
    """What stands before and behind a model's thoughts, in any case of letters.

    Attributes:
        opening: begins a thought.
        closing: ends it.
        closing_alone: whether the closing text ends nothing but thoughts: without an opening one before it, it then
            ends a thought that began unseen, in the prompt.
        prompt_only: whether the opening text is a plain sentence, which begins a thought in a prompt alone.
    """

    opening: str
    closing: str
    closing_alone: bool = True
    prompt_only: bool = False


KNOWN_MARKERS = (
    ThoughtMarkers("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM, SmolLM3, Nemotron, MiniMax-M2 and most others
    ThoughtMarkers("[THINK]", "[/THINK]"),  # Magistral and Ministral
    ThoughtMarkers("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarkers("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ThoughtMarkers("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    ThoughtMarkers("<thought>", "</thought>"),  # EXAONE Deep
    ThoughtMarkers("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B and A
    ThoughtMarkers("◁think▷", "◁/think▷"),  # Kimi-VL-Thinking
    ThoughtMarkers("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi-K3
    ThoughtMarkers("<|channel|>analysis<|message|>", "<|end|>", closing_alone=False),  # gpt-oss
    ThoughtMarkers("<|think|>", "<|end|>", closing_alone=False),  # Solar Open
    ThoughtMarkers("<|channel>thought", "<channel|>"),  # Gemma 4
    ThoughtMarkers("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtMarkers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", prompt_only=True),  # Apriel
)
"""By family; ``docs/templates.md`` shows which of the published chat templates they meet."""


@dataclass(frozen=True)
class ReadCompletion:
    """A completion taken apart.

    Attributes:
        visible: what lies outside thoughts, joined.
        before: the part of it that stands before the first thought.
        openings: opening markers, one in the prompt included.
        closings: closing markers.
        unfinished: whether a thought is still open at the end.
    """

    visible: str
    before: str
    openings: int
    closings: int
    unfinished: bool

    @property
    def is_one_thought_first(self) -> bool:
        """Whether it begins with one whole thought and has no other; its opening marker may stand in the prompt."""
        whole = self.closings == 1 and self.openings <= 1 and not self.unfinished
        return whole and not self.before.strip()


@dataclass(frozen=True)
class Thinking:
    """How thoughts are marked in the completions of a prompt.

    Attributes:
        markers: every pair that may occur; see :data:`KNOWN_MARKERS`.
        opened: the opening marker of the thought that the prompt ends in; empty where there is none. Completions
            then begin within that thought.
    """

    markers: tuple[ThoughtMarkers, ...] = KNOWN_MARKERS
    opened: str = ""

    def read(self, completion: str) -> ReadCompletion:
        """The completion taken apart, in a time linear in its length.

        Thoughts do not nest: an opening marker within a thought is part of it, and the first closing one of its kind
        ends it. A closing marker without a thought before it ends one that began unseen, so that nothing before it
        counts.
        """
        inside = next((each for each in self.markers if each.opening == self.opened), None) if self.opened else None
        kept: list[str] = []
        openings, closings, start = int(inside is not None), 0, 0
        before: str | None = None if inside is None else ""
        for found in _pattern(self.markers).finditer(completion):
            opens, closes = _kinds(self.markers, found[0])
            if inside is None and opens is not None:
                kept.append(completion[start : found.start()])
                before = "".join(kept) if before is None else before
                inside, openings = opens, openings + 1
            elif inside is not None and inside in closes:
                inside, closings, start = None, closings + 1, found.end()
            elif inside is None and any(each.closing_alone for each in closes):
                kept.clear()
                before, closings, start = "", closings + 1, found.end()
            else:
                openings += opens is not None
        if inside is None:
            kept.append(completion[start:])
        visible = "".join(kept)
        return ReadCompletion(visible, visible if before is None else before, openings, closings, inside is not None)

    def after(self, prompt_end: str) -> "Thinking":
        """The same markers, for completions of a prompt.

        Args:
            prompt_end: the prompt from the assistant's turn on.
        """
        inside: ThoughtMarkers | None = None
        for found in _pattern(self.markers, in_prompt=True).finditer(prompt_end):
            opens, closes = _kinds(self.markers, found[0], in_prompt=True)
            if inside is None:
                inside = opens
            elif inside in closes:
                inside = None
        return Thinking(self.markers, inside.opening if inside else "")


NO_OPEN_THOUGHT = Thinking()


def thinking_from_state(state: Mapping[str, Any]) -> Thinking:
    """The inverse of ``dataclasses.asdict``."""
    return Thinking(tuple(ThoughtMarkers(**each) for each in state["markers"]), state["opened"])


def _openings(markers: tuple[ThoughtMarkers, ...], in_prompt: bool) -> list[str]:
    return [each.opening for each in markers if in_prompt or not each.prompt_only]


@lru_cache(maxsize=32)
def _pattern(markers: tuple[ThoughtMarkers, ...], in_prompt: bool = False) -> re.Pattern[str]:
    texts = {*_openings(markers, in_prompt), *(each.closing for each in markers)}
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def _kinds(
    markers: tuple[ThoughtMarkers, ...], text: str, in_prompt: bool = False
) -> tuple[ThoughtMarkers | None, list[ThoughtMarkers]]:
    """The pair that ``text`` opens, and those that it closes."""
    folded = text.casefold()
    candidates = [each for each in markers if in_prompt or not each.prompt_only]
    opens = next((each for each in candidates if each.opening.casefold() == folded), None)
    return opens, [each for each in markers if each.closing.casefold() == folded]
