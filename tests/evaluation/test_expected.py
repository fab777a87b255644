"""Published scores: which model's, beside which of ours, and whether our configurations do what their sources did."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.data.prompts import PromptSettings, Style
from app.data.registry import REGISTRY
from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError
from app.evaluation.benchmarks import BenchmarkSettings
from app.evaluation.expected import Conditions, compare, differences, format_comparison, reference_model
from app.evaluation.intervals import Interval
from app.evaluation.published import OPEN_R1, PROBLEMS, PUBLISHED, QWEN_MATH, SIMPLERL, SOBER, Protocol, Published
from app.evaluation.results import BenchmarkScores
from benchmarks.expected_scores import PAGE, page

CONFIGS = Path("configs/benchmarks")


@pytest.mark.parametrize(
    ("reference", "path", "expected"),
    [
        (None, "Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        (None, "/models/qwen2.5-7b/", "Qwen2.5-7B"),
        (None, "runs/mine/hf", None),
        (None, None, None),
        ("Qwen2.5-7B", "runs/mine/hf", "Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-Math-7B", "Qwen2.5-7B"),
    ],
)
def test_a_model_is_known_by_its_name_or_by_the_one_asked_for(
    reference: str | None, path: str | None, expected: str | None
) -> None:
    assert reference_model(reference, path) == expected


def test_a_reference_without_scores_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"evaluation.reference: no .*did you mean 'Qwen2.5-Math-7B'"):
        reference_model("Qwen2.5-Mth-7B", None)


def score(model: str, benchmark: str, protocol: Protocol) -> Published:
    (found,) = (x for x in PUBLISHED if (x.model, x.benchmark, x.protocol) == (model, benchmark, protocol))
    return found


@pytest.mark.parametrize(
    ("model", "benchmark", "protocol", "percent", "tolerance"),
    [
        ("DeepSeek-R1-Distill-Qwen-1.5B", "aime24", SOBER, 28.7, 9.6),  # twice the deviation between seeds
        ("DeepSeek-R1-Distill-Qwen-1.5B", "math500", SOBER, 84.9, 1.8),  # 200 √(0.849 · 0.151 / 1500)
        ("DeepSeek-R1-Distill-Qwen-7B", "math500", OPEN_R1, 94.5, 1.0),
        ("DeepSeek-R1-Distill-Qwen-7B", "aime24", OPEN_R1, 50.8, 3.3),  # one problem of 30
        ("Qwen2.5-7B", "gsm8k", SIMPLERL, 88.2, 1.8),
        ("Qwen2.5-7B", "amc23", SIMPLERL, 30.0, 14.5),
        ("Qwen2.5-Math-72B-Instruct", "aime24", QWEN_MATH, 30.0, 16.7),
    ],
)
def test_figures_and_tolerances(
    model: str, benchmark: str, protocol: Protocol, percent: float, tolerance: float
) -> None:
    found = score(model, benchmark, protocol)
    assert (found.percent, found.tolerance) == (percent, tolerance)


def test_every_score_is_a_share_of_a_registered_benchmark_and_stands_once() -> None:
    assert all(0 <= each.percent <= 100 and each.benchmark in REGISTRY for each in PUBLISHED)
    keys = [(each.model, each.benchmark, each.protocol.name) for each in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert {each.benchmark for each in PUBLISHED} <= PROBLEMS.keys()


def conditions_of(file: str, **sampling: Any) -> dict[str, Conditions]:
    """By benchmark, what a configuration of this repository does."""
    values = yaml.safe_load((CONFIGS / file).read_text())
    style = PromptSettings(**values["data"]["init_args"]["prompt"]).resolve()
    evaluation = values["evaluation"]
    common = SamplingSettings(**evaluation["sampling"] | sampling)
    found = {}
    for name in values["data"]["init_args"]["benchmarks"]:
        settings = BenchmarkSettings(**evaluation.get("benchmarks", {}).get(name, {}))
        found[name] = Conditions(settings.sampling(common), settings.samples, style)
    return found


@pytest.mark.parametrize(
    ("file", "sampling", "protocol"),
    [
        ("reasoning_32k.yaml", {}, OPEN_R1),
        ("reasoning_32k.yaml", {"temperature": 0.8, "top_p": 0.9}, SOBER),
        ("qwen_math.yaml", {}, QWEN_MATH),
        ("simplerl_greedy.yaml", {}, SIMPLERL),
    ],
)
def test_a_configuration_does_what_its_source_did(file: str, sampling: dict[str, float], protocol: Protocol) -> None:
    assert file in protocol.configuration
    conditions = conditions_of(file, **sampling)
    for each in (each for each in PUBLISHED if each.protocol is protocol):
        assert differences(each, PROBLEMS[each.benchmark], conditions[each.benchmark]) == []
        if protocol is not SOBER:
            assert conditions[each.benchmark].samples == protocol.samples.get(each.benchmark, 1)


def test_what_was_done_in_another_way_is_named() -> None:
    here = Conditions(SamplingSettings(temperature=0.0, max_new_tokens=64), 1, Style("{problem}", chat="always"))
    expected = ["problems 3 (30)", "temperature 0 (0.6)", "top_p 1 (0.95)", "max_new_tokens 64 (32768)", "prompt"]
    assert differences(score("DeepSeek-R1-Distill-Qwen-7B", "aime24", OPEN_R1), 3, here) == expected
    greedy = Conditions(SamplingSettings(0.0, 0.5, max_new_tokens=2048), 1, PromptSettings(style="qwen_math").resolve())
    assert differences(score("Qwen2.5-Math-72B-Instruct", "aime24", QWEN_MATH), 30, greedy) == []


def test_the_table_holds_ours_theirs_and_whether_they_agree() -> None:
    own = [
        BenchmarkScores("math500", 500, 1, {"accuracy": Interval(0.66, 0.61, 0.70)}, {}),
        BenchmarkScores("amc23", 40, 1, {"accuracy": Interval(0.05, 0.01, 0.10)}, {}),
        BenchmarkScores("mine", 10, 1, {"accuracy": Interval(0.5, 0.2, 0.8)}, {}),
    ]
    conditions = conditions_of("simplerl_greedy.yaml")
    rows = compare("Qwen2.5-7B", own, conditions)
    greedy = [row for row in rows if row["source"] == "SimpleRL-Zoo"]
    assert [(row["benchmark"], row["within"], row["differs"]) for row in greedy] == [
        ("math500", True, []),
        ("amc23", False, []),
    ]
    assert [row["within"] for row in rows if row["source"] == "sober-reasoning"] == [None, None]  # it samples
    table = format_comparison("Qwen2.5-7B", own, rows).splitlines()
    assert table[0].startswith("published scores of Qwen2.5-7B")
    (line,) = (line for line in table if line.startswith("math500") and "SimpleRL" in line)
    assert line.split() == ["math500", "66.0", "[61.0,", "70.0]", "64.6", "±", "4.3", "yes", "SimpleRL-Zoo", "–"]


def test_the_page_is_that_of_the_data() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
