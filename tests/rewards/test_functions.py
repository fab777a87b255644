"""Reward functions and their weighted sum."""

import logging
import math

import pytest
from jsonargparse import ArgumentParser

from app.data.problems import Problem
from app.errors import ConfigurationError
from app.grading.grader import REASONS
from app.rewards.correctness import CorrectnessReward
from app.rewards.format import FormatReward
from app.rewards.imported import ImportedReward
from app.rewards.overlong import OverlongPenalty
from app.rewards.reward import RewardError, RewardFunction, RewardSample
from app.rewards.weighted import WeightedRewards

HERE = "tests.rewards.reward_examples"


def sample(
    completion: str, answer: str = "5", n_tokens: int = 10, finish: str = "stop", **extra: object
) -> RewardSample:
    return RewardSample(Problem("p-1", "?", answer, extra=extra), completion, n_tokens, finish, 100)


class Constant:
    """A score for all."""

    def __init__(self, name: str, score: float | None) -> None:
        self.name = name
        self.score = score

    def __call__(self, samples):
        return [self.score for _ in samples]


@pytest.fixture(scope="module")
def correctness():
    reward = CorrectnessReward(workers=1)
    yield reward
    reward.close()


def test_correctness_scores_and_counts(correctness: CorrectnessReward) -> None:
    rows = [
        sample(r"\boxed{5}"),
        sample(r"\boxed{6}"),
        sample("5"),
        sample(r"\boxed{5}", answer="f(x)=ax, where a is any integer"),
        sample(r"\boxed{4.3}", answer="4.2", error="1e-1"),
        sample(r"\boxed{" + "9" * 5000 + "}"),
    ]
    assert correctness(rows) == [1.0, 0.0, 0.0, None, 1.0, 0.0]
    assert correctness.verdict_counts() == {
        "match": 2,
        "mismatch": 1,
        "no_answer": 1,
        "timeout": 0,
        "too_long": 1,
        "unparseable_gold": 1,
    }
    assert [verdict.extracted for verdict in correctness.last_verdicts[:3]] == ["5", "6", None]


@pytest.mark.parametrize(
    ("completion", "finish", "plain", "thinking"),
    [
        (r"so \boxed{5}", "stop", 1, 0),
        (r"so \boxed{5}", "length", 0, 0),
        ("5", "stop", 0, 0),
        (r"\boxed{}", "stop", 0, 0),
        (r"\boxed{5} \boxed{5}", "stop", 0, 0),
        (r"<think>hm \boxed{4}</think>\boxed{5}", "stop", 1, 1),
        (r"hm</think>\boxed{5}", "stop", 1, 1),
        (r"<think>a</think><think>b</think>\boxed{5}", "stop", 1, 0),
        (r"\boxed{5}<think>a</think>", "stop", 1, 0),
        (r"<think>a \boxed{5}", "stop", 0, 0),
        (r"<think>a</think>", "stop", 0, 0),
    ],
)
def test_format(completion: str, finish: str, plain: int, thinking: int) -> None:
    assert FormatReward()([sample(completion, finish=finish)]) == [plain]
    assert FormatReward(thinking=True)([sample(completion, finish=finish)]) == [thinking]


@pytest.mark.parametrize(
    ("n_tokens", "score"), [(0, 0), (79, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (120, -1)]
)
def test_overlong_penalty_is_that_of_dapo(n_tokens: int, score: float) -> None:
    assert OverlongPenalty(buffer_tokens=20)([sample("", n_tokens=n_tokens)]) == [pytest.approx(score)]


def test_overlong_penalty_refuses_impossible_buffers() -> None:
    with pytest.raises(ConfigurationError, match="buffer_tokens"):
        OverlongPenalty(0)
    with pytest.raises(ConfigurationError, match=r"buffer_tokens.*100"):
        OverlongPenalty(101)([sample("")])


def test_imported_reward() -> None:
    reward = ImportedReward(f"{HERE}:brevity")
    assert reward.name == "brevity"
    assert reward([sample("ab"), sample("")]) == [0.5, None]
    assert ImportedReward(f"{HERE}:brevity", name="short").name == "short"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_colon", "package.module:function"),
        (":function", "package.module:function"),
        ("no.such.module:f", "cannot import"),
        (f"{HERE}:brevty", "did you mean 'brevity'"),
        (f"{HERE}:NOT_A_FUNCTION", "is a int, not a function"),
        (f"{HERE}:two_arguments", "must take one argument"),
    ],
)
def test_wrong_import_paths_are_refused_at_once(path: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImportedReward(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails_on_digits", "'fails_on_digits' failed for problem 'p-1': ZeroDivisionError"),
        ("gives_up", "'gives_up' failed for problem 'p-1': SystemExit: no answer"),
        ("too_few", "'too_few' returned 0 scores for 2 samples"),
        ("words", "'words' returned 'good' for problem 'p-1'"),
        ("infinite", "'infinite' returned nan for problem 'p-1'"),
    ],
)
def test_a_failing_function_is_named_with_its_problem(name: str, message: str) -> None:
    rewards = WeightedRewards([ImportedReward(f"{HERE}:{name}")])
    with pytest.raises(RewardError, match=message):
        rewards([sample(""), sample("7")])


def test_weighted_sum() -> None:
    rewards = WeightedRewards([Constant("a", 1.0), Constant("b", -0.5), Constant("c", None)], [2, 1, 5])
    scores = rewards([sample("x"), sample("y")])
    assert scores.totals == [1.5, 1.5]
    assert scores.columns["a"] == [1.0, 1.0]
    assert math.isnan(scores.columns["c"][0])
    assert scores.counts == scores.verdicts == {}


def test_what_no_function_can_score_is_nan_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    rewards = WeightedRewards([Constant("a", None), Constant("watched", 1.0)], [1, 0])
    with caplog.at_level(logging.WARNING):
        assert all(map(math.isnan, rewards([sample("x")]).totals))
        rewards([sample("x")])
    assert [record.getMessage() for record in caplog.records] == [
        "no reward function can score the completions of: p-1"
    ]


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "at least one"),
        ([Constant("a", 1)], [0], "at least one"),
        ([Constant("a", 1)], [1, 2], "2 weights for 1"),
        ([Constant("a", 1)], [float("inf")], "finite"),
        ([Constant("a", 1), Constant("a", 2)], None, "same name"),
    ],
)
def test_impossible_combinations_are_refused(functions: list, weights: list | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        WeightedRewards(functions, weights)


def test_counts_come_from_the_correctness_reward(correctness: CorrectnessReward) -> None:
    scores = WeightedRewards([correctness, FormatReward()], [1, 0.1])([sample(r"\boxed{5}"), sample("5")])
    assert scores.totals == [pytest.approx(1.1), 0.0]
    assert scores.verdicts == dict.fromkeys(REASONS, 0) | {"match": 1, "no_answer": 1}
    assert scores.counts == {"grader/restarts": 0.0}


def test_rewards_are_built_from_a_configuration() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[RewardFunction])
    config = parser.parse_object(
        {
            "rewards": [
                {"class_path": "CorrectnessReward", "init_args": {"workers": 1}},
                {"class_path": "FormatReward", "init_args": {"thinking": True}},
                {"class_path": "OverlongPenalty", "init_args": {"buffer_tokens": 16}},
                {"class_path": "app.rewards.imported.ImportedReward", "init_args": {"path": f"{HERE}:brevity"}},
            ]
        }
    )
    rewards = parser.instantiate_classes(config).rewards
    assert [reward.name for reward in rewards] == ["correctness", "format", "overlong", "brevity"]
    assert rewards[1].thinking
