"""Completions and their verdicts, from the real grader."""

from dataclasses import replace

from app.data.problems import Problem
from app.evaluation.generation import grade_anew, judge_groups
from app.grading.grader import Grader
from app.grading.thinking import NO_OPEN_THOUGHT
from tests.evaluation.rows import make_row

PROBLEMS = [Problem("half", "?", r"\frac{1}{2}"), Problem("near", "?", "3.14", extra={"error": "0.01"})]
TEXTS = [
    [r"\boxed{0.5}", r"\boxed{2}", r"so \boxed{2.0}", "no answer"],
    [r"\boxed{3.141}", r"\boxed{4}", "", r"\boxed{}"],
]
CORRECT = [[True, False, False, False], [True, False, False, False]]


def test_verdicts_come_in_order_and_answers_of_one_problem_are_clustered() -> None:
    with Grader(1) as grader:
        judged = judge_groups(PROBLEMS, TEXTS, grader)
    assert [[each.correct for each in group] for group in judged] == CORRECT
    assert [each.cluster for each in judged[0]] == [0, 1, 1, None]
    assert judged[0][0].extracted == "0.5"
    assert [each.reason for each in judged[0]] == ["match", "mismatch", "mismatch", "no_answer"]


def test_grading_anew_changes_verdicts_alone() -> None:
    rows = [
        make_row(problem.id, index, False, completion=text, extracted="?", reason="timeout", cluster=None, grader="old")
        for problem, group in zip(PROBLEMS, TEXTS, strict=True)
        for index, text in enumerate(group)
    ]
    with Grader(1) as grader:
        found = grade_anew(rows, {problem.id: problem for problem in PROBLEMS}, grader, "new", NO_OPEN_THOUGHT)
    assert [row.correct for row in found] == [each for group in CORRECT for each in group]
    assert {row.grader for row in found} == {"new"}
    unchanged = {"extracted": "?", "correct": False, "reason": "timeout", "cluster": None, "grader": "old"}
    assert [replace(row, **unchanged) for row in found] == rows
