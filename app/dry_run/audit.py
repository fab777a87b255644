"""What a credit audit would draw, in the print-out of either dry run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.dry_run.plan import Parts


def audit_section(parts: "Parts", fit: bool) -> Iterator[str]:
    """The section on the audit, where there is one."""
    audit = parts.audit
    if audit is not None:
        name = "" if fit else audit.audited_benchmark(parts.data.benchmark_names)
        when = audit.times(parts.data.iterations) if fit else f"of {name}"
        cost = audit.plan.describe(audit.sampling_of(parts.rollouts).max_new_tokens)
        yield f"credit audit\n  {when}\n  {cost}"
