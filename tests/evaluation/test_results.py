from importlib.metadata import version
from platform import python_version

import pytest
import torch

from app.data.problems import Problem
from app.errors import ConfigurationError
from app.evaluation.grader_version import grader_version
from app.evaluation.metrics import macro_average, summarise
from app.evaluation.results import (
    GRADED_BY,
    fingerprint,
    hash_problems,
    hash_state_dict,
    read_results,
    write_results,
)
from app.grading import grader
from tests.evaluation.rows import make_row, random_rows


def test_results_hold_scores_settings_versions_and_hashes(tmp_path):
    scores = [summarise(random_rows(9, 2, benchmark=name), 2, (2,)) for name in ("one", "two")]
    macro = macro_average(scores)
    hashes = {"one": "1", "two": "2"}
    for _ in range(2):
        write_results(tmp_path / "out", scores, macro, {"temperature": 0.6}, "model", hashes)
    content = read_results(tmp_path / "out")
    assert list(content["benchmarks"]) == ["one", "two"]
    one = content["benchmarks"]["one"]
    assert (one["problems"], one["samples"], one["data_hash"]) == (9, 2, "1")
    for name, interval in scores[0].intervals.items():
        assert one["scores"][name] == {
            "value": interval.value,
            "low": interval.low,
            "high": interval.high,
        }
    assert content["macro_average"]["accuracy"]["value"] == macro["accuracy"].value
    assert content["settings"] == {"temperature": 0.6}
    assert content["model_hash"] == "model"
    assert content["versions"]["python"] == python_version()
    assert content["versions"]["torch"] == version("torch")
    assert set(content["versions"]) >= {"transformers", "vllm", "math-verify", "sympy"}
    assert content["versions"]["grader"] == grader_version()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_results(tmp_path):
    scores = [summarise(random_rows(3, 1), 1)]
    write_results(tmp_path, scores, {}, {"a": 1}, "model", {"toy": "1"})
    with pytest.raises(TypeError):
        write_results(tmp_path, scores, {}, {"a": object()}, "model", {"toy": "1"})
    assert read_results(tmp_path)["settings"] == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "is not JSON"), ("[]", "has no 'benchmarks'")]
)
def test_folders_without_results_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_results(tmp_path)


def test_fingerprint_depends_on_values_and_not_on_order():
    settings = {"k": 4, "sampling": {"temperature": 0.6, "stop": ["a"]}}
    assert fingerprint(settings) == fingerprint(dict(reversed(settings.items())))
    assert fingerprint(settings) != fingerprint(settings | {"k": 5})
    assert len(fingerprint(settings)) == 16
    with pytest.raises(TypeError):
        fingerprint({"path": object()})


def test_problem_hash_depends_on_every_text_and_not_on_order():
    problems = [Problem("1", "p", "a"), Problem("2", "q", "b", source="s", extra={"level": 3})]
    whole = hash_problems(problems)
    assert hash_problems(problems[::-1]) == whole
    assert hash_problems(make_row(key) for key in "12") == hash_problems(
        Problem(key, f"what is {key} ?", key) for key in "12"
    )
    others = [
        Problem("3", "p", "a"),
        Problem("1", "p'", "a"),
        Problem("1", "p", "a'"),
        Problem("1", "pa", ""),
    ]
    assert len({whole, hash_problems(problems[:1]), *(hash_problems([each, problems[1]]) for each in others)}) == 6
    with pytest.raises(ConfigurationError, match="two problems have the id '1'"):
        hash_problems([Problem("1", "p", "a"), Problem("1", "q", "a")])


def test_problem_hash_depends_on_tolerance_and_unit_where_there_are_any():
    found = {
        hash_problems([Problem("1", "p", "a", extra=extra)])
        for extra in ({}, {"error": "1e-2"}, {"error": "1e-1"}, {"unit": "m"}, {"is_multiple_answer": True})
    }
    assert len(found) == 5
    plain = hash_problems([Problem("1", "p", "a")])
    assert hash_problems([Problem("1", "p", "a", extra={"level": 3, "error": None, "unit": ""})]) == plain


def test_what_decides_a_verdict_besides_the_gold_is_what_the_grader_reads():
    assert GRADED_BY == grader._EXTRA_KEYS


def test_state_dict_hash_depends_on_names_types_shapes_and_values():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    whole = hash_state_dict(state)
    assert hash_state_dict(dict(reversed(state.items()))) == whole
    # a transposed view of the transposed values is the same tensor
    assert hash_state_dict(state | {"a": state["a"].T.contiguous().T}) == whole
    changes = [{"a": state["a"].reshape(3, 2)}, {"a": state["a"].double()}, {"a": state["a"] + 1}]
    changes += [{"b": -state["b"]}, {"c": state["b"]}]
    assert len({whole, *(hash_state_dict(state | each) for each in changes)}) == 6
