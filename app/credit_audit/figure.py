"""An audit as a picture."""

import math
from typing import TYPE_CHECKING

from app.credit_audit.audit import AuditResult
from app.credit_audit.comparison import BASE
from app.credit_audit.estimates import QUARTERS
from app.evaluation.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def audit_figure(result: AuditResult, title: str) -> "Figure":
    """Where the true advantage lies and where each variant's credit does, and how well the two agree."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    figure = Figure(figsize=(12, 5), layout="constrained")
    where, agreement = figure.subplots(1, 2)
    _where(where, result)
    figure.legend(*where.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    _agreement(agreement, result)
    figure.suptitle(f"credit audit of {title}: {len(result.segments):,} segments of {result.problems} problems")
    return figure


def _where(axes: "Axes", result: AuditResult) -> None:
    quarters, numbers = result.comparison.quarters, range(1, QUARTERS + 1)
    true = [place.advantage for place in quarters]
    axes.bar(numbers, [each.value for each in true], color="0.85", label="true advantage")
    axes.errorbar(numbers, [each.value for each in true], _reach(true), fmt="none", color="0.4", capsize=3)
    for name in result.credits:
        axes.plot(numbers, [place.variants[name].credit.value for place in quarters], marker="o", ms=3, label=name)
    axes.set(xticks=list(numbers), xlabel="quarter of the completion", ylabel="share of the squares")


def _agreement(axes: "Axes", result: AuditResult) -> None:
    names = list(result.credits)[::-1]
    rows = {"cosine, segments": [result.comparison.everywhere.variants[name].cosine for name in names]}
    if any(math.isfinite(each.cosine.value) for each in result.gradients.values()):
        rows["cosine, whole gradients"] = [result.gradients[name].cosine for name in names]
    for offset, (label, intervals) in enumerate(rows.items()):
        heights = [place - 0.2 * offset for place in range(len(names))]
        axes.errorbar([x.value for x in intervals], heights, xerr=_reach(intervals), fmt="o", capsize=3, label=label)
    axes.set_yticks(range(len(names)), names)
    base = result.comparison.everywhere.variants[BASE].cosine.value
    if math.isfinite(base):
        axes.axvline(base, color="0.7", lw=0.8, zorder=0)
    axes.set(xlabel="agreement with the audited advantage")
    axes.legend(fontsize="small")


def _reach(intervals: list[Interval]) -> list[list[float]]:
    """Lengths of error bars; 0 where an interval is not known, or the value lies outside of it."""
    reach = [[each.value - each.low for each in intervals], [each.high - each.value for each in intervals]]
    return [[max(0.0, each) if math.isfinite(each) else 0.0 for each in side] for side in reach]
