"""Gold answers that the grader cannot read, named when they are loaded and not found out as a reward of 0."""

from collections.abc import Sequence

from app.data.problems import Problem
from app.rewards.grading import Grader

NAMED_GOLDS = 10
"""As many are named; the rest is counted."""


def unparseable_golds(problems: Sequence[Problem], grader: Grader) -> list[Problem]:
    """The problems whose gold answer no completion can match but by repeating it letter by letter."""
    positions = grader.unparseable_golds([(problem.answer, problem.extra) for problem in problems])
    return [problems[position] for position in positions]


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
