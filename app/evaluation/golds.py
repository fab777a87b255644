"""Gold answers that the grader cannot read, named when they are loaded and not found out as a reward of 0."""

from collections.abc import Sequence

from app.data.problems import Problem
from app.grading.grader import Grader

NAMED_GOLDS = 10
"""As many are named; the rest is counted."""


def unparseable_golds(problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """The problems whose gold answer no completion can match but by repeating it letter by letter.

    Those found are asked about once more: a busy machine that exceeds the grader's time limit must not decide which
    problems a run is made of.
    """
    found = list(problems)
    for _ in range(2):
        positions = grader.unparseable_golds([(problem.answer, problem.extra) for problem in found])
        found = [found[position] for position in positions]
    return found


def report_golds(name: str, problems: Sequence[Problem], grader: Grader) -> str | None:
    """One line that names the source and id of each unparseable gold of ``problems``; None where all can be read."""
    found = unparseable_golds(problems, grader)
    if not found:
        return None
    named = [f"{each.source or name} {each.id} ({each.answer[:60]!r})" for each in found[:NAMED_GOLDS]]
    more = f" and {len(found) - NAMED_GOLDS} more" if len(found) > NAMED_GOLDS else ""
    return (
        f"{name}: {len(found)} of {len(problems)} gold answers cannot be read by the grader, so that nothing but "
        f"their literal repetition is correct: {', '.join(named)}{more}"
    )
