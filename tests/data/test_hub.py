"""``datasets`` as a source, whole and streamed, on local files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.data.filters import FilterSettings
from app.data.problems import Problem
from app.data.registry import REGISTRY
from app.data.sources import HubSource, Share
from app.errors import ConfigurationError
from tests.data.files import PROJECT, write_json_lines
from tests.data.hub_server import HubServer

GSM8K_LIKE: dict[str, Any] = {"columns": {"problem": "question"}, "answer_format": "after_hashes"}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three files of 8 rows each."""
    rows = [
        [{"question": f"file {f} row {r}", "answer": f"so\n#### {r}", "level": r % 2} for r in range(8)]
        for f in range(3)
    ]
    return [write_json_lines(tmp_path / f"part{number}.jsonl", part) for number, part in enumerate(rows)]


def streamed(files: list[str], **changes: Any) -> HubSource:
    arguments: dict[str, Any] = {"data_files": files, "streaming": True, "shuffle_buffer": 5, **GSM8K_LIKE, **changes}
    return HubSource("json", **arguments)


def texts(
    source: HubSource, iteration: int, rank: int = 0, world_size: int = 1, count: int = 4, seed: int = 0
) -> list[str]:
    return [problem.problem for problem in source.draw(Share(seed, iteration, rank, world_size, count))]


def test_a_whole_dataset_is_a_list(files: list[str]) -> None:
    source = HubSource("json", data_files=files, name="grade school", **GSM8K_LIKE)
    problems = source.problems()
    assert [(p.id, p.problem, p.answer) for p in problems[:2]] == [
        ("grade school-1", "file 0 row 0", "0"),
        ("grade school-2", "file 0 row 1", "1"),
    ]
    assert len(problems) == 24
    drawn = [text for iteration in range(6) for text in texts(source, iteration)]
    assert sorted(drawn) == sorted(problem.problem for problem in problems)


def test_a_folder_and_a_split_expression_work_too(tmp_path: Path) -> None:
    import datasets

    rows = {
        "prompt": [[{"content": f"p{n}"}] for n in range(5)],
        "reward_model": [{"ground_truth": str(n)} for n in range(5)],
    }
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
    columns = {"problem": "prompt.0.content", "answer": "reward_model.ground_truth"}
    source = HubSource(str(tmp_path / "set"), split="train[:3]", columns=columns)
    assert [(p.problem, p.answer, p.source) for p in source.problems()] == [(f"p{n}", str(n), "set") for n in range(3)]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_streaming_ranks_share_an_epoch_without_overlap(files: list[str], parts: int, world_size: int) -> None:
    rows = parts * 8
    per_rank = 4
    rounds = rows // (per_rank * world_size)
    seen = [
        text
        for rank in range(world_size)
        for source in [streamed(files[:parts])]
        for iteration in range(rounds)
        for text in texts(source, iteration, rank, world_size, per_rank)
    ]
    assert len(seen) == rounds * per_rank * world_size
    if parts % world_size == 0 or parts == 1:
        assert len(set(seen)) == rows
    else:
        assert len(set(seen)) == len(seen)


def test_a_stream_is_resumable_by_position(files: list[str]) -> None:
    source = streamed(files)
    whole = [texts(source, iteration) for iteration in range(14)]
    for iteration in (0, 5, 6, 13):
        assert texts(streamed(files), iteration) == whole[iteration]
    assert texts(source, 3) == whole[3]
    assert texts(source, 4) == whole[4]
    assert texts(source, 9) == whole[9]


def test_a_stream_is_shuffled_by_seed_and_again_every_epoch(files: list[str]) -> None:
    source = streamed(files)
    first, second = ([t for part in range(6) for t in texts(source, epoch * 6 + part)] for epoch in range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    other = streamed(files)
    assert [t for part in range(6) for t in texts(other, part, seed=1)] != first


def test_a_stream_filters_excludes_counts_and_names(files: list[str], tmp_path: Path) -> None:
    bad = write_json_lines(tmp_path / "bad.jsonl", [{"question": "q", "answer": "none", "level": 1}])
    source = streamed([*files, bad], filters=FilterSettings(levels=[1]))
    source.exclude("first file", lambda problem: problem.problem.startswith("file 0"))
    seen = texts(source, 0, count=8)
    assert len(set(seen)) == 8
    assert all(text.split()[1] != "0" and int(text.split()[3]) % 2 for text in seen)
    texts(source, 1, count=8)
    assert source.report.left_out["level"] >= 12
    assert source.report.left_out["first file"] >= 4
    assert "holds no '####'" in source.report.malformed[0]


def test_a_stream_names_a_malformed_row_once_and_not_in_every_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"p{i}", "answer": "#### 1" if i else "1"} for i in range(4)]
    source = streamed([write_json_lines(tmp_path / "bad.jsonl", rows)])
    read = [text for iteration in range(9) for text in texts(source, iteration)]
    assert read.count("p1") > 2
    assert len(source.report.malformed) == 1
    assert [record.message for record in caplog.records] == source.report.malformed


def test_a_stream_refuses_malformed_rows_by_option(tmp_path: Path) -> None:
    bad = write_json_lines(tmp_path / "bad.jsonl", [{"question": "q", "answer": "none"}])
    with pytest.raises(ConfigurationError, match=r"malformed: .*row 1 of the stream"):
        texts(streamed([bad], malformed="refuse"), 0)
    with pytest.raises(ConfigurationError, match="without a usable row"):
        texts(streamed([bad]), 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n' * 3 + '{"question": "q')
    with pytest.raises(
        ConfigurationError, match=r"cannot load json of .*torn\.jsonl \(split train\): JSON parse error"
    ):
        texts(streamed([str(path)], streaming=streaming), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tst"}, r"cannot load json of .*part0.jsonl and 2 more \(split tst\): .*split"),
        ({"columns": {"problem": "quesion"}}, "no column 'quesion'; did you mean 'question'"),
        ({"data_files": ["nowhere.jsonl"]}, r"cannot load json .*nowhere"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_mistakes_are_named(files: list[str], arguments: dict[str, Any], message: str, streaming: bool) -> None:
    with pytest.raises(ConfigurationError, match=message):
        texts(streamed(files, **{"streaming": streaming, **arguments}), 0)


MIXED = [
    *("12", "\\frac12", "2020-01-02", "true", "null", "[1,2]", "[1,2)", "12345678901234567890", "1e5", "007", "-0.50"),
    *("é", "2\n3", "[[1,2],[3,4]]", "1 000"),
]
"""Answers as text, many of which are JSON."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["answer", "struct", "list"])
def test_text_stays_text_beside_one_bare_number(tmp_path: Path, streaming: bool, kind: str) -> None:
    columns = {"answer": "answer", "struct": "reward_model.ground_truth", "list": "turns.0.answer"}

    def row(number: int, answer: Any) -> dict[str, Any]:
        made = {"answer": answer, "reward_model": {"ground_truth": answer}, "turns": [{"answer": answer}]}
        return {"problem": f"p{number}", columns[kind].split(".")[0]: made[columns[kind].split(".")[0]]}

    answers = [*MIXED, 7, 12345678901234567890, True]
    path = write_json_lines(tmp_path / "mixed.jsonl", [row(i, answer) for i, answer in enumerate(answers)])
    source = HubSource("json", data_files=[path], streaming=streaming, columns={"answer": columns[kind]})
    drawn = source.draw(Share(0, 0, 0, 1, len(answers)))
    read = {problem.problem: problem.answer for problem in drawn}
    assert source.report.malformed == []
    expected = [*MIXED, "7", "12345678901234567890", "true"]
    assert [read[f"p{i}"] for i in range(len(answers))] == [
        '{"a": 1}' if "{" in x and x[0] == "{" else x for x in expected
    ]


def test_objects_of_mixed_columns_stay_objects(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"content": "p0", "n": 1}], "answer": "1"},
        {"prompt": [{"content": "p1", "n": "x"}], "answer": "2"},
        {"prompt": {"text": "p"}, "answer": "3"},
    ]
    path = write_json_lines(tmp_path / "mixed.jsonl", rows)
    source = HubSource("json", data_files=[path], columns={"problem": "prompt.0.content"})
    assert [problem.problem for problem in source.problems()] == ["p0", "p1"]


def test_numbers_that_a_float_cannot_hold_and_dates_are_refused_by_name(tmp_path: Path) -> None:
    for answers, reason in (([12345678901234567890, 1], "read as a float"), (["2020-01-02"] * 2, "JsonLinesSource")):
        rows = [{"problem": f"p{i}", "answer": answer} for i, answer in enumerate(answers)]
        path = write_json_lines(tmp_path / f"{len(reason)}.jsonl", rows)
        source = HubSource("json", data_files=[path], answer_format="integer", malformed="refuse")
        with pytest.raises(ConfigurationError, match=reason):
            source.problems()


def test_a_stream_cannot_be_listed(files: list[str]) -> None:
    source = streamed(files)
    assert not source.finite
    with pytest.raises(ConfigurationError, match="streaming: json is streamed and cannot be listed"):
        source.problems()


OLD, NEW = "a" * 40, "b" * 40
READ = """
import json, sys
from app.data.sources import RegisteredSource, Share
from app.errors import ConfigurationError
source = RegisteredSource("math12k", **json.loads(sys.argv[1]))
try:
    texts = [problem.problem for problem in source.draw(Share(0, 0, 0, 1, 2))]
    print(json.dumps({**source.origin(), "texts": sorted(texts)}))
except ConfigurationError as error:
    print(json.dumps({"error": str(error)}))
"""


def read_from_hub(home: Path, address: str, offline: bool = False, **arguments: Any) -> dict[str, Any]:
    """What a new process reads: the clients take the hub's address from the environment, once."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "*", "no_proxy": "*"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", READ, json.dumps(arguments)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_hub_dataset_is_read_at_its_revision_and_the_commit_is_known(tmp_path: Path) -> None:
    commits = {
        commit: {"train.jsonl": "".join(f'{{"problem": "{commit[0]}{i}", "answer": "1"}}\n' for i in (1, 2)).encode()}
        for commit in (OLD, NEW)
    }
    hub_id = REGISTRY["math12k"].hub_id
    home = tmp_path / "home"
    with HubServer(hub_id, commits, {"main": OLD}) as hub:
        moving = read_from_hub(home, hub.address)
        assert (moving["dataset"], moving["revision"], moving["commit"]) == (hub_id, "main", OLD)
        assert moving["texts"] == ["a1", "a2"]
        hub.branches["main"] = NEW
        assert read_from_hub(home, hub.address, streaming=True)["commit"] == NEW
        pinned = read_from_hub(home, hub.address, streaming=True, revision=OLD)
        assert (pinned["commit"], pinned["texts"]) == (OLD, ["a1", "a2"])
        assert "doesn't exist" in read_from_hub(home, hub.address, revision="v2", streaming=True)["error"]
    # From here on there is no hub, and the old commit alone is in the cache.
    cached = read_from_hub(home, hub.address, offline=True, revision=OLD)
    assert (cached["commit"], cached["texts"]) == (OLD, ["a1", "a2"])
    assert read_from_hub(home, hub.address, offline=True)["commit"] == OLD
    for other in (NEW, "v1"):
        refused = read_from_hub(home, hub.address, offline=True, revision=other)["error"]
        assert f"the latest in the local cache is commit {OLD}, which may not be '{other}'" in refused


@pytest.mark.slow
def test_each_cached_commit_is_read_without_the_hub(tmp_path: Path) -> None:
    commits = {
        commit: {"train.jsonl": "".join(f'{{"problem": "{commit[0]}{i}", "answer": "1"}}\n' for i in (1, 2)).encode()}
        for commit in (OLD, NEW)
    }
    home = tmp_path / "home"
    with HubServer(REGISTRY["math12k"].hub_id, commits, {"main": NEW}) as hub:
        for commit in (OLD, NEW):
            assert read_from_hub(home, hub.address, revision=commit)["commit"] == commit
    for commit in (OLD, NEW):
        cached = read_from_hub(home, hub.address, offline=True, revision=commit)
        assert (cached["commit"], cached["texts"]) == (commit, [f"{commit[0]}1", f"{commit[0]}2"])
    assert read_from_hub(home, hub.address, offline=True)["commit"] == NEW


def test_local_files_have_no_commit(files: list[str]) -> None:
    assert HubSource("json", data_files=files).origin() == {"dataset": "json", "split": "train", "data_files": files}


@pytest.mark.parametrize("streaming", [False, True])
def test_golds_that_cannot_be_read_are_malformed_rows(
    files: list[str], streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream asks of each row that it reads and passes its filters, and never of another."""
    asked: list[str] = []

    def unreadable(problem: Problem) -> bool:
        asked.append(problem.answer)
        return problem.answer == "3"

    source = streamed(files, streaming=streaming, filters=FilterSettings(levels=[1]))
    source.check_golds(unreadable)
    seen = texts(source, 0, count=6)
    assert not any(text.endswith("row 3") for text in seen)
    assert set(asked) <= {"1", "3", "5", "7"}
    assert len(asked) <= 12
    assert 0 < len(source.report.malformed) <= 3
    assert "the grader cannot read the gold answer '3'" in source.report.malformed[0]
    assert ("row" in caplog.text) == streaming  # a source read whole is reported on by its data module
    refusing = streamed(files, streaming=streaming, malformed="refuse")
    refusing.check_golds(unreadable)
    with pytest.raises(ConfigurationError, match=r"malformed: json: row \d+.* cannot read .*\(set malformed: skip"):
        texts(refusing, 0, count=24)


def test_the_registry_holds_the_usual_datasets() -> None:
    names = "gsm8k math12k math500 aime24 aime25 amc23 amc olympiadbench minerva dapo17k orz57k deepscaler"
    assert set(REGISTRY) == set(names.split())
    assert all(entry.hub_id.count("/") == 1 for entry in REGISTRY.values())
    assert all(entry.files[entry.split] for entry in REGISTRY.values())
