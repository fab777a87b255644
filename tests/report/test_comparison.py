"""Differences of methods, from curves written by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.report.comparison import differences_of, outcomes_of
from app.report.plan import Measures, Method, Plan, Task
from app.report.runs import runs_of
from app.report.scheduling import State
from app.report.statistics import holm
from app.report.tables import kind_of, report

PLAN = Plan(
    tasks={name: Task(fit=["configs/quickstart/grpo_lambda.yaml"], policies=["x", "y"]) for name in ("early", "late")},
    methods={
        "base": Method({}),
        "better": Method({}, against="base"),
        "other": Method({}, against="base"),
        "control": Method({}, against="better", group="control", seeds=1),
    },
    measures=Measures(accuracy=0.5, last=1, window=1),
    warm_starts=2,
    seeds=2,
    resamples=2000,
)
GAIN = {"base": 0.0, "better": 0.1, "other": 0.0, "control": 0.05}
WOBBLE = {1001: 0.01, 1002: -0.01, 2001: 0.03, 2002: -0.03}


def curves(method: str, seed: int) -> dict[str, list[float]]:
    """Starts at 0.2; the base's area is 0.4, and each seed moves all methods alike."""
    after = 0.5 + 1.5 * (GAIN[method] + WOBBLE[seed])
    sign = 1 if seed % 2 else -1
    after += 0.03 * sign if method == "other" else 0.0  # ahead on half of the seeds
    return {"reward": [0.2, after, after], "heldout": [0.3, 0.4, 0.5], "tokens": [10.0, 20.0, 30.0]}


def made(*missing: str) -> State:
    state = State(PLAN, Path())
    for run in runs_of(PLAN):
        if run.name not in missing:
            state.finished[run.name] = {"curves": curves(run.method, run.seed)}
    return state


def test_differences_are_paired_and_in_three_forms() -> None:
    found = differences_of(PLAN, outcomes_of(made()))["early", "better", "area"]
    # pair by pair the gain is 0.1, whatever the seeds do; the base's area is 0.4 and 0.2 above the start
    assert (found.absolute.low, found.absolute.value, found.absolute.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.relative is not None
    assert found.relative.value == pytest.approx(0.25)
    assert found.above_start is not None
    assert found.above_start.value == pytest.approx(0.5)
    # drawn areas lie in 0.4 ± 0.03, which the ratios feel
    assert 0.1 / 0.43 <= found.relative.low < 0.25 < found.relative.high <= 0.1 / 0.37
    assert (found.pairs, found.planned, found.ahead) == (4, 4, 4)


def test_what_cannot_be_told_apart_has_an_interval_around_zero() -> None:
    found = differences_of(PLAN, outcomes_of(made()))["late", "other", "area"]
    assert found.absolute.value == pytest.approx(0)
    assert found.absolute.low == pytest.approx(-found.absolute.high) == pytest.approx(-0.02)
    assert found.ahead == 2
    assert found.corrected == 1.0


def test_holms_family_is_a_group_on_all_tasks_in_one_measure() -> None:
    differences = differences_of(PLAN, outcomes_of(made()))
    main = {key: each.p_value for key, each in differences.items() if key[2] == "area" and key[1] != "control"}
    assert len(main) == 4
    corrected = holm({"/".join(key): value for key, value in main.items()})
    assert {"/".join(key): differences[key].corrected for key in main} == corrected
    smallest = min(main.values())
    assert differences["early", "better", "area"].corrected == pytest.approx(4 * smallest)
    assert differences["early", "control", "area"].corrected == pytest.approx(2 * smallest)  # a family of two


def test_a_method_with_fewer_seeds_is_compared_on_those() -> None:
    found = differences_of(PLAN, outcomes_of(made()))["early", "control", "area"]
    assert (found.pairs, found.planned) == (2, 2)
    assert found.absolute.value == pytest.approx(-0.05)


def test_a_missing_run_takes_its_pair_along_and_is_counted() -> None:
    state = made("early/runs/base/seed-1001", *(f"late/runs/other/seed-{seed}" for seed in WOBBLE))
    differences = differences_of(PLAN, outcomes_of(state))
    assert (differences["early", "better", "area"].pairs, differences["early", "better", "area"].planned) == (3, 4)
    assert differences["early", "control", "area"].pairs == 2  # whose pairs are whole
    assert ("late", "other", "area") not in differences
    page = report(state, outcomes_of(state), differences)
    assert "**23 of 28 planned runs are done**" in page
    assert "| better | base | 3 of 4 | +0.100 (+0.100 to +0.100) |" in page
    assert "| other | base | none yet |" in page
    assert "0.05. Fewer than 6 pairs: better (against base), other (against base)." in page
    assert "- early/runs/base: not run yet: seed-1001\n" in page
    assert "- late/runs/other: not run yet: seed-1001, seed-2001, seed-1002, seed-2002\n" in page


def test_nothing_is_called_different_on_few_pairs() -> None:
    found = differences_of(PLAN, outcomes_of(made()))["early", "better", "area"]
    assert found.corrected < 0.05
    assert [kind_of(replace(found, pairs=pairs)) for pairs in (5, 6)] == ["Fewer than 6 pairs", "Larger"]
    equal = replace(found, pairs=8, corrected=0.05)
    assert kind_of(equal) == "Cannot be told apart"
    assert kind_of(replace(found, pairs=8, absolute=found.absolute._replace(value=-0.1))) == "Smaller"


def test_an_area_of_nothing_has_no_relative_form() -> None:
    state = made()
    for result in state.finished.values():
        result["curves"]["reward"] = [0.0, 0.0, 0.0]
    found = differences_of(PLAN, outcomes_of(state))["early", "better", "area"]
    assert (found.relative, found.above_start) == (None, None)
    assert "nan" not in report(state, outcomes_of(state), differences_of(PLAN, outcomes_of(state)))
