"""Where completions are cut, and what an audit costs at most."""

from typing import Any

import pytest

from app.credit_audit.plan import AuditPlan, boundaries, cut_positions
from app.errors import ConfigurationError


def test_segments_cover_a_completion_and_their_number_is_bounded() -> None:
    for longest in (1, 7, 40, 256):
        for count in (1, 3, 8, 300):
            every = AuditPlan(cut_points=count).spacing(longest)
            for length in range(1, longest + 1):
                found = boundaries(length, every)
                assert [start for start, _ in found] == cut_positions(length, every)
                assert len(found) <= count
                assert [token for start, end in found for token in range(start, end)] == list(range(length))


def test_the_cost_said_beforehand_is_that_of_completions_as_long_as_they_may_be() -> None:
    plan = AuditPlan(problems=3, completions=2, cut_points=4, continuations=5)
    assert cut_positions(10, plan.spacing(10)) == [0, 3, 6, 9]
    assert plan.most_continuations == 3 * 2 * 4 * 5
    assert plan.most_tokens(10) == 3 * 2 * (10 + 5 * (10 + 7 + 4 + 1))
    assert "120 continuations and 720 tokens" in plan.describe(10)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"problems": 1}, "audit.problems"),
        ({"completions": 1}, "audit.completions"),
        ({"cut_points": 0}, "audit.cut_points"),
        ({"continuations": 1}, "audit.continuations"),
    ],
)
def test_numbers_that_give_no_estimate_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}: must be at least"):
        AuditPlan(**changes)
