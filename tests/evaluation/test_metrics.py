import itertools
import random
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluation.intervals import mean_interval
from app.evaluation.metrics import (
    NO_VOTE,
    AverageAtK,
    MajorityAtK,
    MeanLength,
    PassAtK,
    TruncationRate,
    VerdictRate,
    benchmark_metrics,
    cluster_answers,
    macro_average,
    sample_columns,
    summarise,
)
from tests.evaluation.rows import make_row, random_rows


def ids(count: int) -> list[str]:
    return [f"problem {each}" for each in range(count)]


def majority_by_counting(clusters: list[int], correct: list[bool]) -> float:
    votes = Counter(each for each in clusters if each != NO_VOTE)
    winners = [each for each, count in votes.items() if count == max(votes.values())]
    right = {each for each, good in zip(clusters, correct, strict=True) if good}
    return sum(each in right for each in winners) / len(winners) if winners else 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for count in range(n + 1):
        correct = [True] * count + [False] * (n - count)
        random.Random(count).shuffle(correct)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(correct, k))
            metric = PassAtK(k, resamples=10)
            metric.update(["one"], torch.tensor([correct]))
            assert metric.compute().value == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_one_is_avg_and_many_samples_stay_exact():
    correct = torch.rand(9, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    average, first, large = AverageAtK(), PassAtK(1), PassAtK(200)
    average.update(ids(9), correct)
    first.update(ids(9), correct)
    assert torch.allclose(average.per_problem(), first.per_problem(), atol=1e-12)
    large.update(["one"], torch.arange(1000)[None] == 17)
    assert large.compute().value == pytest.approx(0.2, abs=1e-15)


def test_pass_at_k_refuses_too_few_samples():
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples a problem, got 3"):
        PassAtK(4).update(["one"], torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 1"):
        PassAtK(0)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.integers(NO_VOTE, 3), min_size=1, max_size=8), st.integers(0, 3))
def test_majority_agrees_with_counting_votes(clusters, gold):
    correct = [each == gold for each in clusters]
    metric = MajorityAtK(resamples=10)
    metric.update(["one"], torch.tensor([clusters]), torch.tensor([correct]))
    assert metric.compute().value == pytest.approx(majority_by_counting(clusters, correct))


def test_majority_in_words():
    metric = MajorityAtK(resamples=10)
    clusters = torch.tensor([[1, 0, 0, 2], [1, 1, 0, 0], [NO_VOTE] * 4, [NO_VOTE, NO_VOTE, NO_VOTE, 0]])
    metric.update(ids(4), clusters, clusters == 0)
    keyed = dict(zip(metric.keys[0].tolist(), metric.scores[0].tolist(), strict=True))
    assert list(keyed.values()) == [1.0, 0.5, 0.0, 1.0]


def test_lengths_and_rates():
    lengths, truncated = torch.tensor([[4, 6], [10, 20]]), torch.tensor([[False, True], [True, True]])
    mean, rate, missing = MeanLength(), TruncationRate(), VerdictRate("no_answer")
    mean.update(ids(2), lengths)
    rate.update(ids(2), truncated)
    missing.update(ids(2), [["match", "no_answer"], ["timeout", "mismatch"]])
    assert mean.compute().value == 10
    assert rate.compute().value == 0.75
    assert missing.compute().value == 0.25


def test_order_and_batches_do_not_matter_bit_for_bit():
    correct = torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    whole, pieces = AverageAtK(), AverageAtK()
    whole.update(ids(40), correct)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2)).tolist()
    for first in range(0, 40, 7):
        piece = order[first : first + 7]
        pieces.update([ids(40)[each] for each in piece], correct[piece])
    assert pieces.compute() == whole.compute()


def test_repeated_problems_count_once_and_are_told(caplog):
    metric, plain = AverageAtK(), AverageAtK()
    plain.update(["a", "b", "c"], torch.tensor([[1.0], [0.0], [0.0]]))
    metric.update(["a", "b"], torch.tensor([[1.0], [0.0]]))
    metric.update(["c", "a"], torch.tensor([[0.0], [0.0]]))
    assert metric.compute() == plain.compute()
    assert "1 problems were evaluated more than once" in caplog.text


def test_reset_and_bad_calls():
    metric = AverageAtK()
    metric.update(["a"], torch.ones(1, 2))
    metric.compute()
    metric.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own: compute before update
        with pytest.raises(ValueError, match="nothing was evaluated"):
            metric.compute()
    with pytest.raises(ValueError, match="2 problem ids for scores of shape"):
        metric.update(["a", "b"], torch.ones(3, 2))


def test_answers_are_clustered_by_the_given_equality():
    asked: list[tuple[str, str]] = []

    def equal(pairs):
        asked.extend(pairs)
        return [float(one) == float(other) for one, other in pairs]

    extracted = ["3", "0.5", None, "0.50", "3.0", "0.5", "2", ".5"]
    correct = [True, False, False, False, True, False, False, False]
    assert cluster_answers(extracted, correct, equal) == [0, 1, None, 1, 0, 1, 2, 1]
    # identical strings are asked about once, correct answers never
    assert asked == [("0.5", "0.50"), ("0.5", "2"), ("0.5", ".5"), ("2", ".5")]


def test_columns_keep_rows_of_a_problem_together():
    rows = [make_row("a", 1, False, cluster=None), make_row("b", 0, n_tokens=3), make_row("a", 0)]
    rows.append(make_row("b", 1, False, reason="timeout", finish_reason="length", n_tokens=5))
    columns = sample_columns(rows, samples=2)
    assert columns.problem_ids == ["a", "b"]
    assert columns.correct.tolist() == [[1, 0], [1, 0]]
    assert columns.clusters.tolist() == [[0, NO_VOTE], [0, 1]]
    assert columns.n_tokens.tolist() == [[7, 7], [3, 5]]
    assert columns.truncated.tolist() == [[0, 0], [0, 1]]
    assert columns.reasons == [["match", "mismatch"], ["match", "timeout"]]


@pytest.mark.parametrize("rows", [[make_row("a")], [make_row("a"), make_row("a")], [make_row("a", 1)] * 2])
def test_columns_refuse_problems_without_all_samples(rows):
    with pytest.raises(ValueError, match="problem 'a' has samples"):
        sample_columns(rows, samples=2)


def test_summary_against_plain_loops():
    rows = random_rows(problems=30, samples=4)
    shuffled = random.Random(5).sample(rows, len(rows))
    scores = summarise(shuffled, samples=4, pass_k=(1, 3))
    groups = [rows[first : first + 4] for first in range(0, len(rows), 4)]
    expected = {
        "accuracy": sum(row.correct for row in rows) / 120,
        "pass@1": sum(row.correct for row in rows) / 120,
        "pass@3": sum(
            sum(any(row.correct for row in each) for each in itertools.combinations(group, 3)) / 4 for group in groups
        )
        / 30,
        "maj@k": sum(
            majority_by_counting(
                [NO_VOTE if row.cluster is None else row.cluster for row in group],
                [row.correct for row in group],
            )
            for group in groups
        )
        / 30,
        "mean_length": sum(row.n_tokens for row in rows) / 120,
        "truncation_rate": sum(row.finish_reason == "length" for row in rows) / 120,
        "no_answer_rate": sum(row.reason == "no_answer" for row in rows) / 120,
        "timeout_rate": sum(row.reason == "timeout" for row in rows) / 120,
        "too_long_rate": 0.0,
        "unparseable_gold_rate": 0.0,
    }
    found = {name: interval.value for name, interval in scores.intervals.items()}
    assert found == pytest.approx(expected)
    assert (scores.name, scores.problems, scores.samples) == ("toy", 30, 4)
    assert scores == summarise(rows, samples=4, pass_k=(1, 3))
    per_problem = torch.tensor(scores.values["accuracy"], dtype=torch.float64)
    assert mean_interval(per_problem) == scores.intervals["accuracy"]


def test_metrics_that_agree_on_a_first_batch_stay_apart():
    metrics = benchmark_metrics(samples=2, pass_k=(2,), resamples=10)
    for group in ([make_row("a", 0), make_row("a", 1)], [make_row("b", 0), make_row("b", 1, False)]):
        metrics.update(**sample_columns(group, 2)._asdict())
    found = metrics.compute()
    assert (found["accuracy"].value, found["pass@2"].value) == (0.75, 1.0)


def test_summary_refuses_other_than_one_benchmark():
    with pytest.raises(ValueError, match="got none"):
        summarise([], samples=1)
    with pytest.raises(ValueError, match="'other', 'toy'"):
        summarise([make_row("a"), make_row("a", benchmark="other")], samples=1)


def test_macro_average_of_shared_metrics():
    one = summarise(random_rows(20, 4, benchmark="one"), 4, pass_k=(2,))
    other = summarise(random_rows(50, 1, seed=1, benchmark="other"), 1)
    macro = macro_average([one, other])
    assert set(macro) == set(other.intervals)
    for name, interval in macro.items():
        mean = (one.intervals[name].value + other.intervals[name].value) / 2
        assert interval.value == pytest.approx(mean)
    assert macro["accuracy"].low < macro["accuracy"].value < macro["accuracy"].high
    with pytest.raises(ValueError, match="no benchmarks"):
        macro_average([])
