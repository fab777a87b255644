"""Reward functions and their weighted sum."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
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
from tests.rewards.reward_examples import RETURNED
from tests.running import fit, make_data, make_module, make_rollouts

HERE = "tests.rewards.reward_examples"
MEDDLER = f"{HERE}:meddler"


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


def test_what_no_function_can_score_is_nan_and_reported_at_every_tenfold(caplog: pytest.LogCaptureFixture) -> None:
    rewards = WeightedRewards([Constant("a", None), Constant("watched", 1.0)], [1, 0])
    problems = [RewardSample(Problem(f"p-{index}", "?", "5"), "x", 1, "stop", 100) for index in range(30)]
    with caplog.at_level(logging.WARNING):
        for one in problems:
            assert all(map(math.isnan, rewards([one, one]).totals))
        rewards(problems)
    one, ten = (record.getMessage() for record in caplog.records)
    assert one == (
        "no reward function can score the completions of p-0; they teach nothing. Problems without a score so far: 1; "
        "completions/unscored shows their share"
    )
    assert "of p-9; they" in ten
    assert "so far: 10;" in ten


def test_a_warning_names_few_of_many_problems(caplog: pytest.LogCaptureFixture) -> None:
    problems = [RewardSample(Problem(f"p-{index}", "?", "5"), "x", 1, "stop", 100) for index in range(3000)]
    WeightedRewards([Constant("a", None)])(problems)
    assert "completions of p-0, p-1, p-2 and 2997 more; they" in caplog.text
    assert len(caplog.text.splitlines()) == 1


class Returning:
    """A reward function that returns this, whatever the samples."""

    name = "mine"

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def __call__(self, samples: Any) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dictionary", "returned a dict: a list of one finite number"),
        ("set", "returned a set: a list"),
        ("text", "returned a str: a list"),
        ("nothing", "returned None: a list"),
        ("number", "returned a float: a list"),
        ("scalar tensor", "returned a Tensor of shape []: a list"),
        ("matrix", "returned a Tensor of shape [2, 3]: a list"),
        ("column", "returned a Tensor of shape [2, 1]: a list"),
        ("numpy matrix", "returned a ndarray of shape [2, 2]: a list"),
        ("list of lists", "returned [1.0, 2.0] for problem 'p-1'"),
        ("list of vectors", "returned tensor([0., 0., 0.]) for problem 'p-1'"),
        ("too large", "returned 1000"),
        ("complex", "returned 1j for problem 'p-1'"),
        ("array strings", "for problem 'p-1': a finite number"),
    ],
)
def test_what_is_no_list_of_scores_is_named_in_one_short_line(kind: str, message: str) -> None:
    with pytest.raises(RewardError) as caught:
        WeightedRewards([Returning(RETURNED[kind])])([sample("a"), sample("b")])
    assert str(caught.value).startswith("reward 'mine' returned ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("kind", "scores"), [("vector", [1.0, 0.0]), ("numpy vector", [1.0, 0.0]), ("tuple", [1.0, None])]
)
def test_any_sequence_of_numbers_will_do(kind: str, scores: list[float | None]) -> None:
    totals = WeightedRewards([Returning(RETURNED[kind])])([sample("a"), sample("b")]).totals
    assert [None if math.isnan(total) else total for total in totals] == scores


def test_scores_may_come_one_after_the_other() -> None:
    assert WeightedRewards([ImportedReward(f"{HERE}:generator")])([sample("a"), sample("b")]).totals == [0.0, 1.0]


def test_an_exception_of_many_lines_becomes_one_short_line() -> None:
    with pytest.raises(RewardError) as caught:
        WeightedRewards([ImportedReward(f"{HERE}:many_lines")])([sample("a")])
    assert "failed for problem 'p-1': ValueError: a first line and a second xxx" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700


def test_what_a_function_changes_for_the_whole_process_is_put_back(tmp_path: Path) -> None:
    """Without gradients the update would fail, with another dtype its products, elsewhere the next checkpoint."""
    here = Path.cwd()
    trainer = fit(tmp_path, make_module(), make_data(iterations=2), [make_rollouts(rewards=[ImportedReward(MEDDLER)])])
    assert trainer.callback_metrics["grad_norm"] > 0
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()) == (True, torch.float32, here)


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
    assert scores.counts == {"rollouts/grader/restarts": 0.0}


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
