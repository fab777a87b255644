"""New figures beside the committed ones: ratios, what is worse, and what cannot be compared."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from benchmarks import trace_scan
from benchmarks.baselines import RUNS
from benchmarks.compare import BASELINES, compare, main, ratio
from benchmarks.figures import Figure, Record, read

OLD = Record(
    "scan",
    {"rows": 4},
    {"processor": "A", "cores": 2},
    {"torch": "2.13.0"},
    {"time": Figure(20.0, "ms", "lower"), "speed": Figure(100.0, "tokens/s", "higher")},
)


def with_figures(time: float, speed: float) -> Record:
    return replace(OLD, figures={"time": Figure(time, "ms", "lower"), "speed": Figure(speed, "tokens/s", "higher")})


def saved(path: Path, record: Record, **changes: Any) -> Path:
    figures = {name: vars(figure) for name, figure in record.figures.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**vars(record), "figures": figures, **changes}))
    return path


def test_a_ratio_is_above_one_where_the_new_figure_is_better() -> None:
    assert ratio(Figure(10.0, "ms", "lower"), Figure(20.0, "ms", "lower")) == 2
    assert ratio(Figure(50.0, "tokens/s", "higher"), Figure(100.0, "tokens/s", "higher")) == 0.5


@pytest.mark.parametrize(
    ("time", "speed", "worse"),
    [(20, 100, []), (22, 92, []), (23, 100, ["time"]), (20, 89, ["speed"]), (2, 1000, []), (40, 50, ["time", "speed"])],
)
def test_worse_is_what_misses_the_baseline_by_more_than_the_threshold(time: float, speed: float, worse: list) -> None:
    found = compare(with_figures(time, speed), OLD, threshold=0.1)
    assert [each.name for each in found if each.worse] == worse


def test_it_prints_the_ratios_and_says_what_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = saved(tmp_path / "old" / "scan.json", OLD)
    new = saved(tmp_path / "scan.json", replace(with_figures(40, 110), machine={"processor": "B", "cores": 2}))
    assert main([str(new), "--baselines", str(baseline.parent)]) == 1
    printed = capsys.readouterr().out
    assert "other machine: processor A → B" in printed
    assert "other versions" not in printed
    time, speed = (next(line for line in printed.splitlines() if f"  {name} " in line) for name in ("time", "speed"))
    assert time.split() == ["time", "20", "→", "40", "ms", "0.50×", "worse"]
    assert speed.split() == ["speed", "100", "→", "110", "tokens/s", "1.10×"]
    assert printed.endswith("1 worse by more than 10%\n")
    assert main([str(new), "--baselines", str(baseline.parent), "--threshold", "0.6"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"rows": 8}}, "scan: rows is 8, the baseline's 4: run it alike"),
        ({"benchmark": "other"}, "other: benchmark is 'other', the baseline's 'scan'"),
        ({"figures": {"time": OLD.figures["time"]}}, "scan: 'speed' is missing, which the baseline has"),
    ],
)
def test_what_is_not_alike_is_not_compared(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        compare(replace(OLD, **change), OLD, 0.1)


def test_a_file_that_is_missing_or_holds_something_else_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.json'}: No such file or directory\n"
    for text in ("{", "[]", '{"figures": {"time": {"value": 1}}}'):
        (tmp_path / "odd.json").write_text(text)
        assert main([str(tmp_path / "odd.json")]) == 2
        assert "odd.json: no figures of a benchmark" in capsys.readouterr().err


def test_a_benchmark_writes_what_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "new" / "trace_scan.json"
    options = ["--shapes", "2x9", "--repeats", "1", "--warmup", "0", "--json", str(output)]
    monkeypatch.setattr(sys, "argv", ["trace_scan", *options])
    trace_scan.main()
    record = read(output)
    assert record.figures.keys() == {"recent, 2 rows of 9 tokens", "both, 2 rows of 9 tokens"}
    assert record.options["shapes"] == [[2, 9]]
    assert not any(each.worse for each in compare(record, record, 0.0))


def test_every_committed_baseline_can_be_measured_again() -> None:
    files = {file.stem: read(file) for file in BASELINES.glob("*.json")}
    assert files.keys() <= RUNS.keys()
    assert all(record.benchmark == RUNS[name][0] for name, record in files.items())
