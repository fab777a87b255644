"""Grading begins while others are generated, and nothing of what comes out depends on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.data.problems import Problem, PromptBatch
from app.engines.engine import SamplingSettings
from app.engines.faults import EngineFailure, GuardedEngine
from app.engines.transformers_engine import TransformersEngine
from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer
from app.rewards.correctness import CorrectnessReward
from app.rewards.reward import RewardError, RewardFunction, RewardSample, Scores
from app.rewards.weighted import WeightedRewards
from app.rollout.collection import RolloutCollector
from app.rollout.experience import Rollout
from tests.engines.vllm.support import Owner
from tests.models import tiny_model

ENDS = (1, 2)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [17, 18], [19, 20]]
#: Answers that two plain numbers do not settle: a grading process must look at each.
BATCHES = [
    PromptBatch(0, [Problem(f"p{n}", "?", "x^2 + 1") for n in range(3)], PROMPTS[:3]),
    PromptBatch(1, [Problem(f"p{n}", "?", r"\frac{1}{2}") for n in (3, 4)], PROMPTS[3:]),
]


class NumberedBox(CorrectnessReward):
    """The tiny policy writes no answers: each completion is taken for one that its number of tokens decides."""

    name = "boxed"
    events: list[str]

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return super().__call__([boxed(sample) for sample in samples])

    def foresee(self, samples: Sequence[RewardSample]) -> None:
        super().foresee([boxed(sample) for sample in samples])
        self.events += [future.result(timeout=120) for future in self.grader._foreseen.values()]


def boxed(sample: RewardSample) -> RewardSample:
    return replace(sample, completion=rf"\boxed{{x^{{{sample.n_tokens % 2 + 1}}} + 1}}")


class Late(TransformersEngine):
    """Hands nothing over before its end."""

    def generate(self, requests: Any) -> Any:
        self.on_ended = None
        return super().generate(requests)


class FailsOnce(TransformersEngine):
    """At the end of its first call, when all completions were handed over."""

    failed = False

    def generate(self, requests: Any) -> Any:
        groups = super().generate(requests)
        if not self.failed:
            self.failed = True
            raise EngineFailure("died", "for a test")
        return groups


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings()))


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def reward() -> Iterator[NumberedBox]:
    found = NumberedBox(workers=1)
    yield found
    found.close()


def collected(engine: Any, policy: PreTrainedModel, tokenizer: Any, *rewards: RewardFunction) -> list[Rollout]:
    """Rollouts without their times. No verdict is known from an earlier call."""
    for function in rewards:
        if isinstance(function, NumberedBox):
            function.grader._known.clear()
            function.events = []
    engine.start(Owner(policy, tokenizer))
    engine.sync(Owner(policy, tokenizer))
    sampling = SamplingSettings(max_new_tokens=24)
    collector = RolloutCollector(engine, WeightedRewards(rewards), 4, sampling, seed=0)
    return [replace(rollout, seconds={}) for rollout in collector.collect(BATCHES, tokenizer, ENDS)]


def test_grading_begins_before_generation_ends_and_changes_nothing(policy: Any, tokenizer: Any, reward: Any) -> None:
    late = collected(Late(), policy, tokenizer, reward)
    assert reward.events == []
    watched = policy.register_forward_pre_hook(lambda *_: reward.events.append("token"))
    early = collected(TransformersEngine(), policy, tokenizer, reward)
    watched.remove()
    judged = [event != "token" for event in reward.events]
    assert not all(judged[judged.index(True) :])  # tokens followed the first judgement
    assert early == late
    assert sum(rollout.verdicts["match"] for rollout in early) > 0
    assert sum(rollout.verdicts["mismatch"] for rollout in early) > 0
    assert not reward.grader._foreseen


def test_an_answer_is_judged_once_in_several_batches_and_after_a_restart(
    policy: Any, tokenizer: Any, reward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = collected(Late(max_batch_rows=6), policy, tokenizer, reward)
    asked: list[Any] = []
    judge = reward.grader._pool._judge
    monkeypatch.setattr(reward.grader._pool, "_judge", lambda request: asked.append(request) or judge(request))
    engine = GuardedEngine(FailsOnce(max_batch_rows=6))
    found = collected(engine, policy, tokenizer, reward)
    assert engine.restarts == 1
    assert found == expected
    assert len(asked) == len({str(request) for request in asked}) > 0


class Raises(RewardFunction):
    name = "raises"

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        if any(sample.problem.id == "p3" for sample in samples):
            raise ValueError("no")
        return [0.0 for _ in samples]


def test_a_reward_that_raises_names_the_same_problem(policy: Any, tokenizer: Any, reward: Any) -> None:
    for engine in (Late(), TransformersEngine()):
        with pytest.raises(RewardError, match=r"reward 'raises' failed for problem 'p3': ValueError: no"):
            collected(engine, policy, tokenizer, reward, Raises())
        assert engine.on_ended is None
