"""Every method's short run is what it was: see :mod:`tests.golden.runs`, and :mod:`tests.golden.renew` to change it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from app.algorithm import traces
from app.algorithm.traces import STYLES, TraceStyle
from tests.golden import renew
from tests.golden.runs import FOLDER, METHODS, differences, read, run_method, run_warm_start

OFF = 1e-4
HINT = "if the method was meant to change: python -m tests.golden.renew, and read the diff"


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_run_is_what_it_was(name: str) -> None:
    changed = differences(read(name), run_method(name))
    assert not changed, f"{HINT}\n" + "\n".join(changed)


def test_the_warm_start_is_what_it_was() -> None:
    changed = differences(read("warm_start"), run_warm_start())
    assert not changed, f"{HINT}\n" + "\n".join(changed)


def test_no_file_is_left_that_no_run_is_compared_with() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == {*METHODS, "warm_start"}


def changed_in_one_iteration(name: str, **changes: Any) -> list[str]:
    """What the first iteration of a run, with changed settings or code, does not share with what was kept."""
    found = run_method(name, iterations=1, **changes)
    return differences(read(name)["iterations"][:1], found["iterations"])


def _past_coefficients_off(style: TraceStyle) -> TraceStyle:
    """Every tr(t, l) with l > 0 is larger by a factor of 1 + 1e-4; tr(t, 0) = 1 stays."""
    return replace(
        style,
        accumulate=lambda values, q: style.accumulate(values, q) * (1 + OFF) - OFF * values,
        backward=lambda positions, q: style.backward(positions, q) * (1 + OFF) - OFF,
        forward=lambda positions, lengths, q: style.forward(positions, lengths, q) * (1 + OFF) - OFF,
    )


@pytest.mark.parametrize("name", [name for name, settings in METHODS.items() if "style" in settings])
def test_coefficients_that_are_off_by_a_ten_thousandth_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    style = METHODS[name]["style"]
    monkeypatch.setitem(STYLES, style, _past_coefficients_off(STYLES[style]))
    changed = changed_in_one_iteration(name)
    assert any("grad_norm" in line for line in changed), changed


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("_decay_triangle", "trace_recent"),
        ("_before_half", "trace_both"),
        ("_geometric_sum", "weight_recent"),
        ("_geometric_sum", "trace_both_normalised_kl"),
    ],
)
def test_parts_of_the_scan_that_are_off_by_a_ten_thousandth_show(
    function: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part: Callable[..., Tensor] = getattr(traces, function)
    monkeypatch.setattr(traces, function, lambda *arguments: part(*arguments) * (1 + OFF))
    assert any("grad_norm" in line for line in changed_in_one_iteration(name))


@pytest.mark.parametrize("name", ["terminal", "fipo", "trace_both"])
def test_a_decay_that_is_off_by_a_ten_thousandth_shows(name: str) -> None:
    assert any("grad_norm" in line for line in changed_in_one_iteration(name, lam=0.9 + OFF))


def test_the_last_digits_of_another_machine_are_forgiven_and_missing_values_are_not() -> None:
    kept = {"iterations": [{"grad_norm": 1.0, "kl": 0.0}], "style": "both"}
    assert differences(kept, {"iterations": [{"grad_norm": 1.0 + 1e-7, "kl": 0.0}], "style": "both"}) == []
    assert differences(kept, {"iterations": [{"grad_norm": 1.00001}], "style": "recent"}) == [
        "iterations.0.grad_norm: kept 1.0, found 1.00001",
        "iterations.0.kl: kept 0.0, found None",
        "style: kept both, found recent",
    ]
    assert differences(kept["iterations"], []) == [": kept [{'grad_norm': 1.0, 'kl': 0.0}], found []"]


def test_renewing_an_unknown_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert renew.main(["trace_rcent"]) == 2
    assert "error: no golden run is called trace_rcent; there are grpo, " in capsys.readouterr().err
