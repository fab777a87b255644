"""``datasets`` as a source, whole and streamed, on local files."""

from pathlib import Path
from typing import Any

import pytest

from app.data.filters import FilterSettings
from app.data.registry import REGISTRY
from app.data.sources import HubSource, RegisteredSource, Share
from app.errors import ConfigurationError
from tests.data.files import write_json_lines

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
    assert "in epoch 0" in source.report.malformed[0]


def test_a_stream_refuses_malformed_rows_by_option(tmp_path: Path) -> None:
    bad = write_json_lines(tmp_path / "bad.jsonl", [{"question": "q", "answer": "none"}])
    with pytest.raises(ConfigurationError, match=r"malformed: .*row 1 of the stream"):
        texts(streamed([bad], malformed="refuse"), 0)
    with pytest.raises(ConfigurationError, match="without a usable row"):
        texts(streamed([bad]), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tst"}, r"cannot load json \(split tst\): .*split"),
        ({"columns": {"problem": "quesion"}}, "no column 'quesion'; did you mean 'question'"),
        ({"data_files": ["nowhere.jsonl"]}, r"cannot load json .*nowhere"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_mistakes_are_named(files: list[str], arguments: dict[str, Any], message: str, streaming: bool) -> None:
    with pytest.raises(ConfigurationError, match=message):
        texts(streamed(files, **{"streaming": streaming, **arguments}), 0)


def test_a_stream_cannot_be_listed(files: list[str]) -> None:
    source = streamed(files)
    assert not source.finite
    with pytest.raises(ConfigurationError, match="streaming: json is streamed and cannot be listed"):
        source.problems()


def test_registered_datasets_ask_the_hub_for_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub can be reached in tests: the call that would be made is looked at."""
    import datasets

    calls: list[tuple[Any, ...]] = []

    def record(path: str, name: str | None, **options: Any) -> Any:
        calls.append((path, name, options["split"], options["revision"]))
        return datasets.Dataset.from_dict({"question": ["q"], "answer": ["#### 7"]})

    monkeypatch.setattr(datasets, "load_dataset", record)
    source = RegisteredSource("gsm8k", split="test", revision="abc")
    assert source.problems()[0].answer == "7"
    assert source.problems()[0].extra["solution"] == "#### 7"
    assert calls == [("openai/gsm8k", "main", "test", "abc")]


def test_the_registry_holds_the_usual_datasets() -> None:
    names = "gsm8k math12k math500 aime24 aime25 amc23 amc olympiadbench minerva dapo17k orz57k deepscaler"
    assert set(REGISTRY) == set(names.split())
    assert all(entry.hub_id.count("/") == 1 for entry in REGISTRY.values())
    assert all(entry.files[entry.split] for entry in REGISTRY.values())
