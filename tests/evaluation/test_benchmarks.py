import pytest

from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError
from app.evaluation.benchmarks import BenchmarkSettings, format_table
from app.evaluation.metrics import macro_average, summarise
from tests.evaluation.rows import make_row, random_rows


def test_own_settings_replace_the_common_ones():
    common = SamplingSettings(temperature=0.7, top_k=20, max_new_tokens=512, stop_strings=("</answer>",))
    assert BenchmarkSettings().sampling(common) == common
    own = BenchmarkSettings(samples=8, temperature=0.6, top_p=0.95, max_new_tokens=64, pass_k=[1, 8])
    assert own.pass_k == (1, 8)
    assert own.sampling(common) == SamplingSettings(0.6, 0.95, 20, 0.0, 64, ("</answer>",))
    assert BenchmarkSettings(temperature=0).sampling(common).temperature == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "^samples: must be at least 1, got 0"),
        ({"samples": 4, "pass_k": (8,)}, "^pass_k: pass@8 needs k between 1 and samples, 4"),
        ({"pass_k": (0,)}, "^pass_k: pass@0"),
        ({"samples": 2, "temperature": 0}, "^samples: 2 greedy samples are copies"),
        ({"temperature": -1}, "sampling.temperature"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        BenchmarkSettings(**settings).sampling(SamplingSettings())


def test_several_samples_of_a_common_greedy_setting_are_refused():
    with pytest.raises(ConfigurationError, match="4 greedy samples"):
        BenchmarkSettings(samples=4).sampling(SamplingSettings(temperature=0))


def test_table_has_a_row_a_benchmark_and_lines_up():
    greedy = summarise([make_row(each, correct=each < 30) for each in range(40)], samples=1)
    rows = random_rows(10, 2, benchmark="aime24")
    sampled = summarise(rows, samples=2, pass_k=(2, 1))
    scores = [sampled, greedy]
    header, rule, *lines = format_table(scores, macro_average(scores)).splitlines()
    titles = ["benchmark", "problems", "samples", "accuracy", "pass@1", "pass@2", "maj@k"]
    assert header.split()[:7] == titles
    assert header.endswith("mean tokens  truncated %  no answer %")
    assert "macro" not in format_table(scores[:1], macro_average(scores[:1]))
    assert [line.split()[0] for line in lines[:3]] == ["aime24", "toy", "macro"]
    assert len({len(line) for line in (header, rule, *lines[:3])}) == 1
    interval = greedy.intervals["accuracy"]
    cell = f"75.0 [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    assert lines[1].split(maxsplit=3)[:3] == ["toy", "40", "1"]
    assert lines[1].index(cell) + len(cell) == header.index("accuracy") + len("accuracy")
    assert lines[1].split()[-6:] == ["–", "–", "–", "7.0", "0.0", "0.0"]
    timeouts = 5 * sum(row.reason == "timeout" for row in rows)
    assert lines[3:] == [f"aime24: {timeouts:.2f} % of completions count as wrong: the grader's time limit"]


def test_table_shows_what_all_right_and_all_wrong_give():
    right = summarise([make_row(each) for each in range(5)], 1)
    wrong = summarise([make_row(each, correct=False, benchmark="other") for each in range(5)], 1)
    lines = format_table([right, wrong], macro_average([right, wrong])).splitlines()
    assert "100.0 [47.8, 100.0]" in lines[2]
    assert "0.0 [0.0, 52.2]" in lines[3]
    assert "50.0 [50.0, 50.0]" in lines[4]
