"""What an audit prints, logs and writes."""

import json
import math
from dataclasses import replace
from pathlib import Path

from app.credit_audit.audit import AuditResult
from app.credit_audit.figure import audit_figure
from app.credit_audit.gradients import GradientAgreement
from app.credit_audit.report import audit_metrics, format_audit, write_audit
from app.evaluation.intervals import Interval
from tests.credit_audit.test_comparison import compared

NOTHING = Interval(math.nan, math.nan, math.nan)


def made_up_result() -> AuditResult:
    """Of 60 problems, in which every statistic has a value."""
    _, segments, given, comparison = compared(noise=1.0)
    some = GradientAgreement(*(Interval(value, value / 2, value * 2) for value in (0.5, 3.0, 40.0, 0.3)))
    return AuditResult(
        problems=60,
        left_out=0,
        completions=300,
        continuations=4800,
        tokens=123456,
        reward=0.5,
        segments=segments,
        credits=given,
        ids=[f"p{index}" for index in range(60)],
        comparison=comparison,
        gradients=dict.fromkeys((*given, "audited"), some),
    )


def test_the_table_has_a_row_a_variant_with_intervals() -> None:
    result = made_up_result()
    shown = format_audit(result, "sums")
    assert shown.startswith("credit audit of sums: mean reward 0.500\n60 problems, 300 completions in 1,200 segments")
    first = shown.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in first[2:]] == ["grpo", "perfect", "opposite"]
    cosine = result.comparison.everywhere.variants["perfect"].cosine
    assert f"{cosine.value:.2f} [{cosine.low:.2f}, {cosine.high:.2f}]" in first[3]
    assert "noise, in problems" in shown
    assert "left out" not in shown
    assert "left out: 2 problems" in format_audit(replace(result, left_out=2), "sums")


def test_what_has_no_value_is_a_dash_a_null_and_no_curve(tmp_path: Path) -> None:
    result = made_up_result()
    everywhere = result.comparison.everywhere
    unknown = replace(everywhere.variants["grpo"], cosine=NOTHING)
    everywhere = replace(everywhere, variants=everywhere.variants | {"grpo": unknown})
    result = replace(result, comparison=replace(result.comparison, everywhere=everywhere))
    assert "draw more continuations" in format_audit(result, "sums")
    assert "audit/grpo/cosine" not in audit_metrics(result)
    write_audit(tmp_path / "new" / "audit.json", result, {"title": "sums"})
    found = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert found["comparison"]["everywhere"]["variants"]["grpo"]["cosine"] == {"value": None, "low": None, "high": None}
    assert found["settings"] == {"title": "sums"}
    audit_figure(result, "sums").savefig(tmp_path / "audit.png")  # drawn without what is not known


def test_every_segment_stands_in_the_file(tmp_path: Path) -> None:
    result = made_up_result()
    write_audit(tmp_path / "audit.json", result, {})
    columns = json.loads((tmp_path / "audit.json").read_text())["segments"]
    assert {len(column) for column in columns.values()} == {1200}
    assert columns["problem"][-1] == "p59"
    assert abs(columns["advantage"][7] - float(result.segments.advantage[7])) < 1e-5
    assert abs(columns["credit/perfect"][7] - float(result.credits["perfect"][7])) < 1e-5
