"""From prompts to graded completions, where the completions are known beforehand."""

from collections.abc import Sequence

import pytest

from app.data.problems import Problem, PromptBatch
from app.data.prompts import PromptEncoder, PromptSettings
from app.engines.engine import Completion, GenerationRequest, PolicyOwner, RolloutEngine, SamplingSettings
from app.policy.models import end_token_ids
from app.rewards.correctness import CorrectnessReward
from app.rewards.format import FormatReward
from app.rewards.weighted import WeightedRewards
from app.rollout.collection import RolloutCollector
from app.rollout.experience import Rollout, rollout_from_state, rollout_state
from tests.data import templates
from tests.data.tokenizers import subword_tokenizer


class Scripted(RolloutEngine):
    """Answers every request with the same texts."""

    def __init__(self, rows: Sequence[list[int]], ends: tuple[int, ...]) -> None:
        self.rows, self.ends = rows, ends

    def start(self, module: PolicyOwner) -> None: ...

    def sync(self, module: PolicyOwner) -> None: ...

    def close(self) -> None: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        stopped = {True: "stop", False: "length"}
        group = [Completion(row, [0.0] * len(row), stopped[row[-1] in self.ends]) for row in self.rows]  # type: ignore[arg-type]
        return [group for _ in requests]


def collect(chat_template: str, texts: Sequence[str], **prompt: object) -> Rollout:
    tokenizer = subword_tokenizer(chat_template)
    encoder = PromptEncoder(PromptSettings(**prompt), tokenizer)  # type: ignore[arg-type]
    problems = [Problem("p", "1 + 1 = ?", "2")]
    batch = PromptBatch(0, problems, encoder.encode(problems), thinking=encoder.thinking)
    ends = end_token_ids(tokenizer)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rewards = WeightedRewards([CorrectnessReward(workers=1), FormatReward(thinking=True)])
    try:
        collector = RolloutCollector(Scripted(rows, ends), rewards, len(rows), SamplingSettings(), seed=0)
        return collector.collect([batch], tokenizer, ends)[0]
    finally:
        rewards.close()


CUT_OFF = r"Maybe \boxed{2}? Hmm wait"
WHOLE = r"Maybe \boxed{3}? </think>\boxed{2}<|im_end|>"


def test_a_completion_that_was_cut_off_in_the_thought_of_its_prompt_earns_nothing() -> None:
    found = collect(templates.OPENS_A_THOUGHT, [CUT_OFF, WHOLE])
    assert found.reward_columns == {"correctness": [0.0, 1.0], "format": [0.0, 1.0]}
    assert found.verdicts["no_answer"] == 1


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (templates.BASE_CHAT, {}),
        (templates.MAY_THINK, {"template_arguments": {"enable_thinking": False}}),
        (templates.OPENS_A_THOUGHT, {"chat": "never", "style": "boxed"}),
    ],
)
def test_without_an_open_thought_the_same_text_is_an_answer(template: str, prompt: dict[str, object]) -> None:
    assert collect(template, [CUT_OFF, WHOLE], **prompt).reward_columns["correctness"] == [1.0, 1.0]


def test_a_template_without_chat_may_open_the_thought_too() -> None:
    prompt = {"chat": "never", "template": "User: {problem}\nAssistant: <think>\n"}
    assert collect(templates.BASE_CHAT, [CUT_OFF, WHOLE], **prompt).reward_columns["correctness"] == [0.0, 1.0]
    spoken_of = {"chat": "never", "template": "Think after <think>. {problem}\nAssistant:"}
    assert collect(templates.BASE_CHAT, [CUT_OFF], **spoken_of).reward_columns["correctness"] == [1.0]


def test_a_problem_that_speaks_of_thoughts_opens_none() -> None:
    tokenizer = subword_tokenizer(templates.BASE_CHAT)
    encoder = PromptEncoder(PromptSettings(template="{problem} Write <think> first."), tokenizer)
    assert encoder.thinking.opened == ""


def test_a_waiting_rollout_keeps_what_its_prompts_opened() -> None:
    found = collect(templates.REASONING, [WHOLE])
    assert found.batch.thinking.opened == "<muse>"
    assert rollout_from_state(rollout_state(found)) == found


def test_tokens_that_the_tokenizer_does_not_know_are_counted_and_shown() -> None:
    tokenizer = subword_tokenizer(templates.BASE_CHAT)
    beyond = len(tokenizer) + 3
    row = [*tokenizer(r"\boxed{", add_special_tokens=False)["input_ids"], beyond, *tokenizer("2}")["input_ids"]]
    problems = [Problem("p", "1 + 1 = ?", "2")]
    rewards = WeightedRewards([CorrectnessReward(workers=1)])
    collector = RolloutCollector(Scripted([row, row], ()), rewards, 2, SamplingSettings(), seed=0)
    found = collector.collect([PromptBatch(0, problems, [[5]])], tokenizer, ())[0]
    rewards.close()
    assert found.counts["completions/unknown_tokens"] == 2
    assert found.rewards == [0.0, 0.0]
    assert f"<|unknown:{beyond}|>" in found.texts[0]
