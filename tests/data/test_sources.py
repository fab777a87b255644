"""Sources: order, malformed rows, filters, exclusions, the synthetic ones."""

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data import synthetic
from app.data.filters import DifficultySettings, FilterSettings
from app.data.sources import JsonLinesSource, RegisteredSource, Share, Source, SyntheticSource
from app.errors import ConfigurationError
from tests.data.files import numbered_rows, write_json_lines


def drawn(
    source: Source, iterations: range, rank: int = 0, world_size: int = 1, count: int = 4, seed: int = 0
) -> list[str]:
    shares = [Share(seed, iteration, rank, world_size, count) for iteration in iterations]
    return [problem.problem for share in shares for problem in source.draw(share)]


def levelled(path: Path) -> str:
    rows = numbered_rows(6)
    labels = [("Level 1", "Algebra"), (2, "algebra"), ("Level 5", "Geometry"), ("Level ?", "x"), (5, "Number Theory")]
    for row, (level, subject) in zip(rows, labels, strict=False):
        row.update(level=level, subject=subject)  # type: ignore[call-overload]
    return write_json_lines(path / "levels.jsonl", rows)


class TestOrder:
    def test_an_epoch_is_a_permutation_and_the_next_another_one(self, tmp_path: Path) -> None:
        source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", numbered_rows(12)))
        first, second = drawn(source, range(3)), drawn(source, range(3, 6))
        assert sorted(first) == sorted(second) == sorted(row["problem"] for row in numbered_rows(12))
        assert first != second

    def test_another_seed_gives_another_order(self, tmp_path: Path) -> None:
        source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", numbered_rows(12)))
        assert drawn(source, range(3), seed=1) != drawn(source, range(3), seed=2)

    @given(size=st.integers(1, 9), per_rank=st.integers(1, 5), world_size=st.integers(1, 3), at=st.integers(0, 20))
    @settings(derandomize=True, max_examples=60)
    def test_ranks_share_what_one_process_would_draw(self, size: int, per_rank: int, world_size: int, at: int) -> None:
        source = SyntheticSource(size=size)
        whole = drawn(source, range(at, at + 1), count=per_rank * world_size)
        parts = [
            drawn(SyntheticSource(size=size), range(at, at + 1), r, world_size, per_rank) for r in range(world_size)
        ]
        assert [text for part in parts for text in part] == whole

    def test_a_draw_does_not_depend_on_earlier_ones(self) -> None:
        used, fresh = SyntheticSource(), SyntheticSource()
        drawn(used, range(7))
        assert drawn(used, range(3, 5)) == drawn(fresh, range(3, 5))


class TestJsonLines:
    def test_malformed_rows_are_skipped_counted_and_named(self, tmp_path: Path) -> None:
        good = [json.dumps(row).encode() for row in numbered_rows(3)]
        bad = [
            b"{not json",
            b'{"problem": "caf\xe9", "answer": "1"}',
            b'{"problem": "p"}',
            b'"text"',
            b'{"problem": "p", "answer": 3}',
        ]
        path = tmp_path / "bad.jsonl"
        path.write_bytes(b"\n".join([b"\xef\xbb\xbf" + good[0], *bad, b"", good[1], good[0], good[2], b""]))
        source = JsonLinesSource(str(path))
        assert [problem.id for problem in source.problems()] == ["n0", "n1", "n2"]
        assert (source.report.rows, source.report.kept, len(source.report.malformed)) == (9, 3, 6)
        rows = [line.removeprefix(f"{path}: row ").split(": ", 1) for line in source.report.malformed]
        assert [number for number, _ in rows] == ["2", "3", "4", "5", "6", "9"]
        wanted = [
            "is not JSON",
            "is not UTF-8 (byte 16)",
            "answer is missing",
            "not an object",
            "not a string but int (answer_format: integer takes numbers)",
            "id 'n0'",
        ]
        assert all(expected in reason for expected, (_, reason) in zip(wanted, rows, strict=True))
        assert f"bad: 3 of 9 rows kept; 6 malformed: {path}: row 2: is not JSON" in source.report.summary()
        assert source.report.summary(named=1).count(": row ") == 1

    def test_deeply_nested_json_is_malformed_and_no_crash(self, tmp_path: Path) -> None:
        path = tmp_path / "deep.jsonl"
        path.write_text("[" * 200_000 + "\n" + json.dumps(numbered_rows(1)[0]) + "\n")
        source = JsonLinesSource(str(path))
        assert len(source.problems()) == 1
        assert "row 1: is not JSON" in source.report.malformed[0]

    def test_malformed_rows_can_be_refused(self, tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "bad.jsonl", [*numbered_rows(1), {"problem": "p", "answer": ""}])
        with pytest.raises(ConfigurationError, match=r"bad\.jsonl: row 2: the answer is empty .*malformed: skip"):
            JsonLinesSource(path, malformed="refuse").problems()

    def test_an_unknown_column_names_the_nearest(self, tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "q.jsonl", [{"question": "q", "answer": "1"}])
        with pytest.raises(ConfigurationError, match="no column 'quesion'; did you mean 'question'"):
            JsonLinesSource(path, columns={"problem": "quesion"}).problems()
        with pytest.raises(
            ConfigurationError,
            match=r"no column 'problem'; there are: answer, question; give columns: \{problem: NAME\}",
        ):
            JsonLinesSource(path).problems()

    def test_a_file_without_answers_is_refused_unless_none_are_asked_for(self, tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "q.jsonl", [{"problem": "p"}])
        with pytest.raises(ConfigurationError, match=r"no column 'answer'; .*answer_format: none"):
            JsonLinesSource(path).problems()
        assert JsonLinesSource(path, answer_format="none").problems()[0].answer == ""

    def test_a_missing_file_is_refused_at_once_with_the_nearest_name(self, tmp_path: Path) -> None:
        write_json_lines(tmp_path / "train.jsonl", numbered_rows(1))
        with pytest.raises(ConfigurationError, match=r"no file .*trian\.jsonl; did you mean .*/train\.jsonl\?$"):
            JsonLinesSource(str(tmp_path / "trian.jsonl"))

    def test_a_missing_file_far_from_all_others_lists_none_of_them(self, tmp_path: Path) -> None:
        write_json_lines(tmp_path / "train.jsonl", numbered_rows(1))
        with pytest.raises(ConfigurationError, match=r"there is no file .*/zzz$"):
            JsonLinesSource(str(tmp_path / "zzz"))
        with pytest.raises(ConfigurationError, match=r"there is no folder .*/nowhere$"):
            JsonLinesSource(str(tmp_path / "nowhere" / "train.jsonl"))

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
    def test_a_compressed_file_is_called_that(self, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
        path = tmp_path / "train.jsonl.packed"
        path.write_bytes(pack(json.dumps(numbered_rows(1)[0]).encode()))
        with pytest.raises(ConfigurationError, match=r"path: .*train\.jsonl\.packed is compressed \((gzip|xz)\)"):
            JsonLinesSource(str(path)).problems()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", r"e\.jsonl is empty"),
            (b"\n \n", r"e\.jsonl is empty"),
            (b'{"problem": "", "answer": "1"}', "no usable row"),
            (b'[\n{"problem": "p", "answer": "1"},\n]', "row 1: is not JSON .*one object a line, without an array"),
            (b'[{"problem": "p", "answer": "1"}]', "row 1: is a list; JSON lines hold one object a line"),
            ('{"problem": "p", "answer": "1"}'.encode("utf-16"), "row 1: is UTF-16, not UTF-8"),
        ],
    )
    def test_a_file_without_a_usable_row_is_refused(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "e.jsonl").write_bytes(content)
        with pytest.raises(ConfigurationError, match=reason):
            JsonLinesSource(str(tmp_path / "e.jsonl")).problems()

    def test_lines_may_end_as_on_windows(self, tmp_path: Path) -> None:
        path = tmp_path / "crlf.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in numbered_rows(3)))
        source = JsonLinesSource(str(path))
        assert [problem.id for problem in source.problems()] == ["n0", "n1", "n2"]
        assert source.report.is_clean

    def test_golds_that_cannot_be_read_are_malformed_rows(self, tmp_path: Path) -> None:
        rows = [*numbered_rows(2), {"problem": "no", "answer": "1"}, {"id": "x", "problem": "p", "answer": "("}]
        path = write_json_lines(tmp_path / "a.jsonl", rows)
        source = JsonLinesSource(path)
        assert len(source.problems()) == 4
        source.check_golds(lambda problem: problem.answer == "(")
        source.exclude("no", lambda problem: problem.problem == "no")
        assert [problem.id for problem in source.problems()] == ["n0", "n1"]
        line = f"{path}: row 4: the grader cannot read the gold answer '('"
        assert source.report.summary() == f"a: 2 of 4 rows kept; left out: 1 no; 1 malformed: {line}"
        source.check_golds(lambda problem: False)  # the report is that of the last check
        assert [problem.id for problem in source.problems()] == ["n0", "n1", "x"]
        assert source.report.malformed == []
        refusing = JsonLinesSource(path, malformed="refuse")
        refusing.check_golds(lambda problem: problem.answer == "(")
        with pytest.raises(ConfigurationError, match=r"malformed: .*a\.jsonl: row 4: .*\(set malformed: skip"):
            refusing.problems()


class TestFilters:
    @pytest.mark.parametrize(
        ("filters", "kept", "left_out"),
        [
            (FilterSettings(levels=[5]), ["n2", "n4"], {"level": 4}),
            (FilterSettings(levels=["Level 2", "1"]), ["n0", "n1"], {"level": 4}),
            (FilterSettings(subjects=["ALGEBRA"]), ["n0", "n1"], {"subject": 4}),
            (FilterSettings(levels=[5], subjects=["geometry"]), ["n2"], {"level": 4, "subject": 1}),
            (FilterSettings(max_characters=14), [], {}),
            (FilterSettings(min_characters=15, max_characters=15), ["n0", "n1", "n2", "n3", "n4", "n5"], {}),
        ],
    )
    def test_level_subject_and_length(
        self, tmp_path: Path, filters: FilterSettings, kept: list[str], left_out: dict[str, int]
    ) -> None:
        source = JsonLinesSource(levelled(tmp_path), filters=filters)
        if not kept:
            with pytest.raises(ConfigurationError, match="passes the filters"):
                source.problems()
            return
        assert [problem.id for problem in source.problems()] == kept
        assert source.report.left_out == Counter(left_out)

    def test_a_value_that_no_row_has_is_refused_with_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"no problem of subject \['geometri'\]; did you mean 'Geometry'"):
            JsonLinesSource(levelled(tmp_path), filters=FilterSettings(subjects=["geometri"])).problems()

    def test_a_filter_on_a_column_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "a.jsonl", numbered_rows(2))
        with pytest.raises(ConfigurationError, match="no column 'level'"):
            JsonLinesSource(path, filters=FilterSettings(levels=[1])).problems()

    def test_a_filter_reads_the_column_that_is_mapped(self, tmp_path: Path) -> None:
        rows = [{**row, "hardness": n % 2} for n, row in enumerate(numbered_rows(4))]
        path = write_json_lines(tmp_path / "a.jsonl", rows)
        source = JsonLinesSource(path, columns={"level": "hardness"}, filters=FilterSettings(levels=[1]))
        assert [problem.id for problem in source.problems()] == ["n1", "n3"]

    @pytest.mark.parametrize(("keep_unrated", "kept"), [(False, ["n1", "n2"]), (True, ["n1", "n2", "n4", "n5"])])
    def test_difficulty_from_pass_rates(self, tmp_path: Path, keep_unrated: bool, kept: list[str]) -> None:
        rates = [{"id": f"n{n}", "pass_rate": rate} for n, rate in enumerate([0.0, 0.25, 0.75, 1.0])]
        path = write_json_lines(tmp_path / "rates.jsonl", rates)
        difficulty = DifficultySettings(path, min_pass_rate=0.25, max_pass_rate=0.75, keep_unrated=keep_unrated)
        problems = write_json_lines(tmp_path / "a.jsonl", numbered_rows(6))
        source = JsonLinesSource(problems, filters=FilterSettings(difficulty=difficulty))
        assert [problem.id for problem in source.problems()] == kept

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'{"id": "a"}', "row 1 holds no id"),
            (b'{"id": "a", "pass_rate": 7}', "pass_rate 7.0 is not in"),
            (b"[1]", "row 1 is a list"),
            (b'\n{"id": "caf\xe9", "pass_rate": 0.5}', "row 2 is not UTF-8"),
            (b'{"id": "a", "pass_rate": 1}\n{"id": "a", "pass_rate": 0}', "row 2: the id 'a' stands in an earlier row"),
        ],
    )
    def test_bad_pass_rates_are_refused(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "rates.jsonl").write_bytes(content)
        difficulty = DifficultySettings(str(tmp_path / "rates.jsonl"))
        problems = write_json_lines(tmp_path / "a.jsonl", numbered_rows(1))
        with pytest.raises(ConfigurationError, match=message):
            JsonLinesSource(problems, filters=FilterSettings(difficulty=difficulty)).problems()

    def test_impossible_bounds_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"filters\.max_characters"):
            FilterSettings(min_characters=5, max_characters=4)
        with pytest.raises(ConfigurationError, match="min_pass_rate"):
            DifficultySettings(__file__, min_pass_rate=0.8, max_pass_rate=0.2)
        with pytest.raises(ConfigurationError, match=r"filters\.difficulty\.path"):
            DifficultySettings(str(tmp_path / "none.jsonl"))
        with pytest.raises(ConfigurationError, match=r"filters\.max_characters"):
            FilterSettings(max_characters=0)


class TestExclusions:
    def test_excluded_problems_are_counted_and_never_drawn(self, tmp_path: Path) -> None:
        source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", numbered_rows(5)))
        assert len(source.problems()) == 5
        source.exclude("even", lambda problem: int(problem.answer) % 2 == 0)
        assert {problem.answer for problem in source.problems()} == {"1", "3", "5"}
        assert len(set(drawn(source, range(3), count=1))) == 3
        assert source.report.left_out == Counter({"even": 2})
        assert source.report.kept == 3

    def test_nothing_left_is_an_error(self, tmp_path: Path) -> None:
        source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", numbered_rows(5)))
        source.exclude("all", lambda problem: True)
        with pytest.raises(ConfigurationError, match=r"no problem is left .* 5 all"):
            source.problems()

    def test_an_endless_source_gives_another_problem_instead(self) -> None:
        plain, excluding = SyntheticSource(), SyntheticSource()
        excluding.exclude("long", lambda problem: len(problem.problem) > 60)
        before, after = drawn(plain, range(20)), drawn(excluding, range(20))
        assert max(map(len, after)) <= 60 < max(map(len, before))
        assert all(new == old for old, new in zip(before, after, strict=True) if len(old) <= 60)
        excluding.exclude("everything", lambda problem: True)
        with pytest.raises(ConfigurationError, match=r"(everything|long) excludes every problem"):
            drawn(excluding, range(1))


class TestSynthetic:
    def test_the_endless_stream_brings_new_problems_and_none_that_is_held_out(self) -> None:
        texts = drawn(SyntheticSource(seed=3), range(100))
        assert len(set(texts)) == 400
        assert not any(map(synthetic.is_heldout, texts))

    def test_held_out_problems_are_distinct_and_the_same_for_every_run(self) -> None:
        problems = SyntheticSource("heldout", size=200).problems()
        assert len({problem.problem for problem in problems}) == 200
        assert all(synthetic.is_heldout(problem.problem) for problem in problems)
        assert problems == SyntheticSource("heldout", size=200).problems()
        assert problems[:50] == SyntheticSource("heldout", size=50).problems()

    def test_solutions_come_on_demand(self) -> None:
        plain = SyntheticSource(size=3).problems()
        shown = SyntheticSource(size=3, demonstrations=True).problems()
        assert all("solution" not in problem.extra for problem in plain)
        assert [p.extra["solution"] for p in shown] == [synthetic.demonstration(p.problem, 0) for p in plain]

    def test_an_endless_stream_cannot_be_listed(self) -> None:
        with pytest.raises(ConfigurationError, match=r"size: .* is endless"):
            SyntheticSource().problems()

    @pytest.mark.parametrize("changes", [{"split": "test"}, {"size": 0}])
    def test_impossible_arguments_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(changes))):
            SyntheticSource(**changes)


class TestRegistered:
    def test_a_folder_of_files_serves_a_registered_name(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        write_json_lines(tmp_path / "deep" / "aime24.jsonl", [{"problem": "p", "answer": "025"}])
        source = RegisteredSource("aime24", folder=str(tmp_path))
        assert [(p.id, p.answer, p.source) for p in source.problems()] == [("aime24-1", "25", "aime24")]
        assert source.finite
        assert source.report.kept == 1
        source.exclude("all", lambda problem: True)
        with pytest.raises(ConfigurationError, match="no problem is left"):
            source.draw(Share(0, 0, 0, 1, 1))

    def test_the_split_chooses_the_file(self, tmp_path: Path) -> None:
        write_json_lines(tmp_path / "gsm8k_train.jsonl", numbered_rows(2))
        write_json_lines(tmp_path / "gsm8k_test.jsonl", numbered_rows(3))
        assert len(RegisteredSource("gsm8k", folder=str(tmp_path)).problems()) == 2
        assert len(RegisteredSource("gsm8k", folder=str(tmp_path), split="test").problems()) == 3

    def test_a_file_without_a_split_is_that_of_the_registered_one(self, tmp_path: Path) -> None:
        write_json_lines(tmp_path / "gsm8k.jsonl", numbered_rows(2))
        assert len(RegisteredSource("gsm8k", folder=str(tmp_path)).problems()) == 2
        with pytest.raises(ConfigurationError, match=r"holds none of gsm8k_test\.jsonl for gsm8k"):
            RegisteredSource("gsm8k", folder=str(tmp_path), split="test")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "math50"}, "no dataset is registered as 'math50'; did you mean 'math500'"),
            ({"name": "math500", "folder": "nowhere"}, "there is no folder nowhere"),
            ({"name": "math500", "folder": "."}, "holds none of math500.jsonl"),
            ({"name": "math500", "folder": ".", "streaming": True}, "streaming: is of the hub"),
            ({"name": "math500", "folder": ".", "revision": "v1"}, "revision: is of the hub"),
        ],
    )
    def test_mistakes_are_named(
        self, arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigurationError, match=message):
            RegisteredSource(**arguments)
