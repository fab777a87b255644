"""From a batch of benchmark problems to graded samples."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from app.data.problems import Problem
from app.evaluation.metrics import cluster_answers
from app.evaluation.samples import Sample
from app.rewards.grading import Grader, Verdict
from app.rollout.collection import decode_groups
from app.rollout.engine import Completion, GenerationRequest, RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sample_problems(
    benchmark: str,
    problems: Sequence[Problem],
    requests: Sequence[GenerationRequest],
    engine: RolloutEngine,
    grader: Grader,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Sample]:
    """Generates and grades the completions of ``problems``, one request each; rows problem by problem."""
    groups = engine.generate(requests)
    texts = decode_groups(tokenizer, groups)
    golds = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
    pairs = [(gold.answer, text, gold.extra) for gold, text in zip(golds, texts, strict=True)]
    graded = iter(zip(texts, grader.grade(pairs), strict=True))
    rows = []
    for problem, request, group in zip(problems, requests, groups, strict=True):
        rows += _problem_samples(benchmark, problem, request.seed, group, graded, grader)
    return rows


def _problem_samples(
    benchmark: str,
    problem: Problem,
    seed: int,
    group: Sequence[Completion],
    graded: Iterator[tuple[str, Verdict]],
    grader: Grader,
) -> list[Sample]:
    own = [next(graded) for _ in group]
    verdicts = [verdict for _, verdict in own]
    extracted, correct = [each.extracted for each in verdicts], [each.correct for each in verdicts]
    clusters = cluster_answers(extracted, correct, grader.equivalent)
    return [
        Sample(
            benchmark=benchmark,
            id=problem.id,
            problem=problem.problem,
            answer=problem.answer,
            index=index,
            completion=text,
            extracted=verdict.extracted,
            correct=verdict.correct,
            reason=verdict.reason,
            cluster=cluster,
            n_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            seed=seed,
        )
        for index, (completion, (text, verdict), cluster) in enumerate(zip(group, own, clusters, strict=True))
    ]
