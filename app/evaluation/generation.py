"""From a batch of benchmark problems to graded samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from app.data.problems import Problem
from app.engines.engine import GenerationRequest, RolloutEngine
from app.evaluation.metrics import cluster_answers
from app.evaluation.samples import Sample
from app.grading.grader import Grader
from app.grading.thinking import NO_OPEN_THOUGHT, Thinking
from app.rollout.collection import decode_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Judgement:
    """What grading adds to a completion; see :class:`Sample` for the fields."""

    extracted: str | None
    correct: bool
    reason: str
    cluster: int | None


def sample_problems(
    benchmark: str,
    problems: Sequence[Problem],
    requests: Sequence[GenerationRequest],
    engine: RolloutEngine,
    grader: Grader,
    grader_fingerprint: str,
    tokenizer: "PreTrainedTokenizerBase",
    thinking: Thinking,
) -> list[Sample]:
    """Generates and grades the completions of ``problems``, one request each; rows problem by problem.

    Problems with a completion that is not :attr:`~app.engines.engine.Completion.finite` are left out.
    """
    groups = engine.generate(requests)
    whole = [index for index, group in enumerate(groups) if all(completion.finite for completion in group)]
    problems, requests, groups = [problems[i] for i in whole], [requests[i] for i in whole], [groups[i] for i in whole]
    ends = sorted({token for request in requests for token in request.end_token_ids})
    texts = iter(decode_groups(tokenizer, groups, ends))
    texts_PK = [[next(texts) for _ in group] for group in groups]
    judgements_PK = judge_groups(problems, texts_PK, grader, thinking)
    return [
        Sample(
            benchmark=benchmark,
            id=problem.id,
            problem=problem.problem,
            answer=problem.answer,
            index=index,
            completion=text,
            n_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            seed=request.seed,
            grader=grader_fingerprint,
            **asdict(judgement),
        )
        for problem, request, *columns in zip(problems, requests, groups, texts_PK, judgements_PK, strict=True)
        for index, (completion, text, judgement) in enumerate(zip(*columns, strict=True))
    ]


def judge_groups(
    problems: Sequence[Problem], texts: Sequence[Sequence[str]], grader: Grader, thinking: Thinking = NO_OPEN_THOUGHT
) -> list[list[Judgement]]:
    """The judgements of P problems' completions, in their order; the answers of one problem are clustered."""
    pairs = [
        (each.answer, thinking.read(text).visible, each.extra)
        for each, group in zip(problems, texts, strict=True)
        for text in group
    ]
    verdicts = iter(grader.grade(pairs))
    judged = []
    for group in texts:
        own = [next(verdicts) for _ in group]
        clusters = cluster_answers([each.extracted for each in own], [each.correct for each in own], grader.equivalent)
        judged.append([Judgement(v.extracted, v.correct, v.reason, c) for v, c in zip(own, clusters, strict=True)])
    return judged


def grade_anew(
    rows: Sequence[Sample],
    problems: Mapping[str, Problem],
    grader: Grader,
    grader_fingerprint: str,
    thinking: Thinking,
) -> list[Sample]:
    """The same completions with the verdicts of ``grader``.

    Args:
        rows: of whole problems, one problem's after another's.
        problems: by id.
        grader: the present one.
        grader_fingerprint: of it.
        thinking: that of the benchmark's prompts.
    """
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.id)]
    texts = [[row.completion for row in group] for group in groups]
    judged = judge_groups([problems[group[0].id] for group in groups], texts, grader, thinking)
    return [
        replace(row, grader=grader_fingerprint, **asdict(judgement))
        for group, judgements in zip(groups, judged, strict=True)
        for row, judgement in zip(group, judgements, strict=True)
    ]
