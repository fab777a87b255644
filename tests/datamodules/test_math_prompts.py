"""The prompts of RL and the benchmarks: batches, shares, limits, overlap, refusals."""

import logging
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from app.data.problems import PromptBatch
from app.data.prompts import PromptSettings
from app.data.sources import HubSource, JsonLinesSource, Source, SyntheticSource
from app.errors import ConfigurationError
from app.rewards.correctness import CorrectnessReward
from app.rewards.format import FormatReward
from app.rewards.reward import RewardFunction
from datamodules import MathPromptDataModule
from datamodules.base import RECENT_BATCHES, BenchmarkSettings
from datamodules.loaders import BenchmarkLoader
from tests.data.files import numbered_rows, write_json_lines
from tests.data.tokenizers import subword_tokenizer
from tests.datamodules.learners import Recorder, RewardsAlone, content, trainer


def ready(
    data: MathPromptDataModule, tokenizer: Any = None, callbacks: list[pl.Callback] | None = None
) -> MathPromptDataModule:
    """The data module set up for ``fit`` by a real trainer that has a module with a tokenizer."""
    owner = trainer(callbacks)
    owner.strategy.connect(Recorder(tokenizer=tokenizer))
    data.trainer = owner
    data.setup("fit")
    return data


def heldout(size: int = 5, **changes: Any) -> dict[str, BenchmarkSettings]:
    return {"heldout": BenchmarkSettings(SyntheticSource("heldout", size=size), **changes)}


def test_the_module_gets_prompts_ready_for_the_engine() -> None:
    module = Recorder()
    trainer().fit(module, MathPromptDataModule(SyntheticSource(), prompts_per_iteration=3, iterations=2))
    assert [index for index, _ in module.seen] == [0, 1]
    for _, (_, first_index, problems, prompt_ids) in module.seen:
        assert first_index == 0
        assert [module.tokenizer.decode(ids) for ids in prompt_ids] == [f"<user>{p}<assistant>" for p in problems]
        assert len(problems) == 3


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_batches_pass_every_precision_unchanged(precision: Any) -> None:
    data = MathPromptDataModule(SyntheticSource(), heldout(), prompts_per_iteration=2, iterations=2)
    module = Recorder()
    trainer(precision=precision).fit(module, data)
    assert [seen for _, seen in module.seen] == [content(data.train_batch(iteration)) for iteration in range(2)]
    assert len(module.validated) == 1


def test_looking_ahead_changes_nothing_and_reads_a_stream_once(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", numbered_rows(12))

    def data() -> MathPromptDataModule:
        source = HubSource("json", data_files=[path], streaming=True, shuffle_buffer=4)
        return ready(MathPromptDataModule(source, prompts_per_iteration=4, iterations=6))

    plain, ahead = data(), data()
    expected = [content(plain.train_batch(iteration)) for iteration in range(6)]
    order = [0, 1, 2, 0, 1, 2, 3, 4, 3, 5]
    assert [content(ahead.train_batch(iteration)) for iteration in order] == [expected[index] for index in order]
    assert ahead.train is not None
    assert ahead.train.report.rows == 24


def test_old_batches_are_forgotten() -> None:
    data = ready(MathPromptDataModule(SyntheticSource(), prompts_per_iteration=1, iterations=3 * RECENT_BATCHES))
    for iteration in range(2 * RECENT_BATCHES):
        data.train_batch(iteration)
    assert len(data._recent) == RECENT_BATCHES


def test_there_is_no_batch_outside_the_run() -> None:
    data = ready(MathPromptDataModule(SyntheticSource(), iterations=3))
    for iteration in (-1, 3):
        with pytest.raises(IndexError, match="is not in 0 … 2"):
            data.train_batch(iteration)


def test_overlong_problems_are_dropped_from_training_and_counted(tmp_path: Path) -> None:
    rows = [*numbered_rows(6), {"id": "long", "problem": "What is " + "1 + " * 99, "answer": "1"}]
    source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", rows))
    prompt = PromptSettings(max_prompt_tokens=40)
    data = ready(
        MathPromptDataModule(source, prompts_per_iteration=6, iterations=4, prompt=prompt), subword_tokenizer()
    )
    drawn = {problem.id for iteration in range(4) for problem in data.train_batch(iteration).problems}
    assert drawn == {f"n{i}" for i in range(6)}
    assert source.report.left_out == {"prompt over 40 tokens": 1}


@pytest.mark.parametrize("overlong", ["refuse", "truncate"])
def test_overlong_problems_can_be_refused_or_truncated(tmp_path: Path, overlong: Any) -> None:
    rows = [{"id": "long", "problem": "What is " + "1 + " * 99, "answer": "1"}]
    source = JsonLinesSource(write_json_lines(tmp_path / "a.jsonl", rows))
    prompt = PromptSettings(max_prompt_tokens=40, overlong=overlong)
    data = ready(MathPromptDataModule(source, prompts_per_iteration=1, prompt=prompt), subword_tokenizer())
    if overlong == "truncate":
        assert len(data.train_batch(0).prompt_ids[0]) <= 40
        return
    with pytest.raises(ConfigurationError, match=r"the prompt of a long has \d+ tokens, over 40"):
        data.train_batch(0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (7, 2), (8, 4), (9, 4)])
def test_ranks_share_a_benchmark_without_gap_or_repetition(world_size: int, size: int, batch_size: int) -> None:
    problems = SyntheticSource("heldout", size=size).problems()
    loaders = [
        BenchmarkLoader(problems, lambda batch: [[1]] * len(batch), batch_size, rank, world_size)
        for rank in range(world_size)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    batches: list[PromptBatch] = [carried.batch for loader in loaders for carried in loader]
    assert len(batches) == world_size * len(loaders[0])
    placed = {batch.first_index + i: p.id for batch in batches for i, p in enumerate(batch.problems)}
    assert [placed[index] for index in range(size)] == [problem.id for problem in problems]
    assert sum(len(batch.problems) for batch in batches) == size
    assert all(len(batch.prompt_ids) == len(batch.problems) for batch in batches)


def test_benchmarks_are_validated_in_order_with_their_limits_and_prompts() -> None:
    benchmarks = {
        "second": BenchmarkSettings(SyntheticSource("heldout", seed=1, size=9), limit=5),
        "first": BenchmarkSettings(SyntheticSource("heldout", size=3), prompt=PromptSettings(chat="never")),
    }
    data = MathPromptDataModule(benchmarks=benchmarks, benchmark_batch_size=2)
    assert data.benchmark_names == ["second", "first"]
    module = Recorder()
    trainer().validate(module, data, verbose=False)
    sizes = [(loader, index, batch.iteration, len(batch.problems)) for loader, index, batch in module.validated]
    assert sizes == [(0, 0, 0, 2), (0, 1, 1, 2), (0, 2, 2, 1), (1, 0, 0, 2), (1, 1, 1, 1)]
    text = [module.tokenizer.decode(batch.prompt_ids[0]) for loader, index, batch in module.validated if index == 0]
    assert text[0].startswith("<user>")
    assert text[1].startswith(data.benchmark_problems("first")[0].problem)
    assert len(data.benchmark_problems("second")) == 5


def test_a_benchmark_drops_no_overlong_problem() -> None:
    prompt = PromptSettings(max_prompt_tokens=3)
    data = MathPromptDataModule(benchmarks=heldout(prompt=prompt))
    with pytest.raises(ConfigurationError, match="over 3: raise the limit, or set overlong: truncate"):
        trainer().validate(Recorder(), data, verbose=False)


class TestGolds:
    """Twelve of 15 rows have a gold answer that no grader can read."""

    def source(self, folder: Path, **changes: Any) -> JsonLinesSource:
        bad = [{"problem": f"bad {i}", "answer": f"t(0,4]{i}"} for i in range(12)]
        return JsonLinesSource(write_json_lines(folder / "golds.jsonl", [*numbered_rows(3), *bad]), **changes)

    def data(self, source: Source, *rewards: RewardFunction, weights: list[float] | None = None) -> Any:
        rollouts = RewardsAlone(group_size=2, rewards=list(rewards) or None, reward_weights=weights)
        data = MathPromptDataModule(source, prompts_per_iteration=3, iterations=2)
        try:
            return ready(data, subword_tokenizer(), [rollouts])
        finally:
            rollouts.close()

    def test_golds_that_cannot_be_read_are_left_out_and_ten_are_named_in_one_line(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = self.data(self.source(tmp_path))
        drawn = {problem.id for iteration in range(2) for problem in data.train_batch(iteration).problems}
        assert drawn == {"n0", "n1", "n2"}
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        line = warnings[0].getMessage()
        assert line.startswith("golds: 3 of 15 rows kept; 12 malformed: ")
        assert line.count("the grader cannot read the gold answer") == 10
        assert f"{tmp_path / 'golds.jsonl'}: row 4: the grader cannot read the gold answer 't(0,4]0'" in line

    def test_they_can_be_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"malformed: .*golds\.jsonl: row 4: .*cannot read the gold"):
            self.data(self.source(tmp_path, malformed="refuse"))

    def test_a_stream_leaves_them_out_as_it_meets_them(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = str(self.source(tmp_path).path)
        data = self.data(HubSource("json", data_files=[path], streaming=True))
        drawn = [problem.problem for iteration in range(2) for problem in data.train_batch(iteration).problems]
        assert sorted(drawn) == sorted(2 * [row["problem"] for row in numbered_rows(3)])
        assert len(data.train.report.malformed) >= 12
        assert caplog.text.count("of the stream: the grader cannot read") == 10

    def test_rewards_that_ask_no_grader_need_no_gold(self, tmp_path: Path) -> None:
        """Nor does correctness that is only logged."""
        for rewards, weights in (([FormatReward()], None), ([FormatReward(), CorrectnessReward()], [1.0, 0.0])):
            source = self.source(tmp_path, malformed="refuse")
            assert len(self.data(source, *rewards, weights=weights).train.problems()) == 15


class TestOverlap:
    """Five training problems, of which one stands in the benchmark and one holds a run of its words."""

    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"

    def data(self, folder: Path, **changes: Any) -> MathPromptDataModule:
        extra = [("exact", self.words.upper() + " !"), ("gram", f"Count : {self.words.removeprefix('one ')} sheep")]
        rows = [*numbered_rows(3), *({"id": i, "problem": p, "answer": "1"} for i, p in extra)]
        source = JsonLinesSource(write_json_lines(folder / "train.jsonl", rows))
        bench = write_json_lines(folder / "bench.jsonl", [{"problem": self.words, "answer": "1"}])
        benchmarks = {"bench": BenchmarkSettings(JsonLinesSource(bench))}
        return MathPromptDataModule(source, benchmarks, prompts_per_iteration=5, iterations=2, **changes)

    @pytest.mark.parametrize(
        ("policy", "dropped"),
        [("ignore", set()), ("report", set()), ("drop_exact", {"exact"}), ("drop", {"exact", "gram"})],
    )
    def test_by_option(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: Any, dropped: set[str]) -> None:
        with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
            data = ready(self.data(tmp_path, overlap=policy), subword_tokenizer())
            drawn = {problem.id for iteration in range(2) for problem in data.train_batch(iteration).problems}
        assert drawn == {"n0", "n1", "n2", "exact", "gram"} - dropped
        assert ("13-gram" in caplog.text) == (policy != "ignore")
        assert f"training set train: file {tmp_path / 'train.jsonl'}" in caplog.text
        assert re.search(f"training set train: {5 - len(dropped)} problems, content [0-9a-f]{{16}}", caplog.text)

    def test_a_stream_drops_and_cannot_be_reported_on(self, tmp_path: Path) -> None:
        benchmarks = self.data(tmp_path).benchmarks
        source = HubSource("json", data_files=[str(tmp_path / "train.jsonl")], streaming=True)
        data = ready(
            MathPromptDataModule(source, benchmarks, prompts_per_iteration=6, overlap="drop"), subword_tokenizer()
        )
        assert {problem.id for problem in data.train_batch(0).problems} == {"n0", "n1", "n2"}
        with pytest.raises(ConfigurationError, match=r"data\.overlap"):
            ready(MathPromptDataModule(source, benchmarks, overlap="report"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prompts_per_iteration": 0}, r"data\.prompts_per_iteration: must be at least 1, got 0"),
            ({"iterations": 0}, r"data\.iterations"),
            ({"benchmark_batch_size": 0}, r"data\.benchmark_batch_size"),
            ({"overlap": "forbid"}, r"data\.overlap"),
        ],
    )
    def test_impossible_arguments(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MathPromptDataModule(SyntheticSource(), **changes)

    def test_a_limit_below_one(self) -> None:
        with pytest.raises(ConfigurationError, match=r"data\.benchmarks\.limit"):
            heldout(limit=0)

    def test_fit_without_a_training_set(self) -> None:
        with pytest.raises(ConfigurationError, match=r"data\.train: fit needs a training set"):
            trainer().fit(Recorder(), MathPromptDataModule())

    def test_several_epochs(self) -> None:
        with pytest.raises(ConfigurationError, match=r"trainer\.max_epochs: must be 1"):
            trainer(max_epochs=2).fit(Recorder(), MathPromptDataModule(SyntheticSource()))

    def test_an_endless_benchmark(self) -> None:
        data = MathPromptDataModule(benchmarks={"endless": BenchmarkSettings(SyntheticSource("heldout"))})
        with pytest.raises(ConfigurationError, match="is endless"):
            trainer().validate(Recorder(), data, verbose=False)

    def test_a_bad_row_is_found_before_training_starts(self, tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "a.jsonl", [*numbered_rows(50), {"problem": "p"}])
        module = Recorder()
        with pytest.raises(ConfigurationError, match="row 51: the answer is missing"):
            trainer().fit(module, MathPromptDataModule(JsonLinesSource(path, malformed="refuse")))
        assert module.seen == []


def test_a_data_module_without_a_trainer_says_so() -> None:
    with pytest.raises(RuntimeError, match="has no trainer"):
        MathPromptDataModule(SyntheticSource()).train_batch(0)


def test_prompt_batches_are_not_moved_and_tensors_are() -> None:
    data = ready(MathPromptDataModule(SyntheticSource(), prompts_per_iteration=1))
    batch = data.train_batch(0)
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0) is batch
    assert isinstance(data, pl.LightningDataModule)
