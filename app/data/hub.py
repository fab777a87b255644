"""Datasets of the hub (or local files that ``datasets`` reads), whole or streamed."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from app.data.filters import NO_FILTERS, Filter, FilterSettings
from app.data.problems import Problem
from app.data.rows import AnswerFormat, MalformedPolicy, MalformedRowError, RowSettings, read_row
from app.data.source import FiniteSource, Share, check_columns, note_malformed, read_rows
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import IterableDataset


class HubSource(FiniteSource):
    """A dataset that ``datasets.load_dataset`` finds.

    Streamed, nothing is downloaded before it is needed. Each rank reads its own part (whole files where their
    number divides by the ranks, every n-th row otherwise), in an order shuffled by the seed through a buffer
    and again every epoch. A resumed run reads and throws away what came before its iteration: one pass over
    those rows, without tokenising or generating anything.

    Args:
        dataset: hub id, local folder, or a builder's name (``json``, ``parquet``) with ``data_files``.
        config: of a dataset that has several.
        split: such as ``train`` or ``train[:1000]``.
        revision: branch, tag or commit.
        data_files: files for a builder.
        streaming: see above; a streamed source cannot be a benchmark.
        shuffle_buffer: rows among which the stream is shuffled.
        name: of the source; the last part of ``dataset`` if not given.
        columns, answer_format, malformed, max_characters: see :class:`app.data.rows.RowSettings`.
        filters: see :class:`app.data.filters.FilterSettings`.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        data_files: list[str] | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        name: str | None = None,
        columns: dict[str, str] | None = None,
        answer_format: AnswerFormat = "plain",
        malformed: MalformedPolicy = "skip",
        max_characters: int = 20_000,
        filters: FilterSettings = NO_FILTERS,
    ) -> None:
        super().__init__(name or dataset.rstrip("/").split("/")[-1])
        if shuffle_buffer < 1:
            raise ConfigurationError(f"must be at least 1, got {shuffle_buffer}", key="shuffle_buffer")
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.data_files, self.streaming, self.shuffle_buffer = data_files, streaming, shuffle_buffer
        self.rows = RowSettings(columns or {}, answer_format, malformed, max_characters)
        self.filters = filters
        self._stream: _OpenStream | None = None

    @property
    def finite(self) -> bool:
        return not self.streaming

    @property
    def streamed(self) -> bool:
        return self.streaming

    def load(self) -> list[Problem]:
        rows = enumerate(self.open(), start=1)
        return read_rows(rows, self.dataset, self.rows, self.filters, self.report)

    def problems(self) -> list[Problem]:
        if self.streaming:
            raise ConfigurationError(f"{self.name} is streamed and cannot be listed", key="streaming")
        return super().problems()

    def draw(self, share: Share) -> list[Problem]:
        if not self.streaming:
            return super().draw(share)
        start = share.iteration * share.count
        key = (share.seed, share.rank, share.world_size)
        if self._stream is None or self._stream.key != key or self._stream.position > start:
            self.report.clear()
            self._stream = _OpenStream(key, self._endless(*key))
        return self._stream.take(start, share.count)

    def open(self) -> Any:
        """The ``Dataset`` or ``IterableDataset``. Raises ConfigurationError where it cannot be had."""
        from datasets import load_dataset

        try:
            return load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                revision=self.revision,
                data_files=self.data_files,
                streaming=self.streaming,
            )
        except (ValueError, OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigurationError(f"cannot load {self.dataset} (split {self.split}): {reason}") from error

    def _endless(self, seed: int, rank: int, world_size: int) -> Iterator[Problem]:
        """This rank's problems, epoch after epoch."""
        from datasets.distributed import split_dataset_by_node

        wanted = Filter(self.filters)
        dataset = self.open().shuffle(seed=seed % 2**32, buffer_size=self.shuffle_buffer)
        shard = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
        for epoch in itertools.count():
            shard.set_epoch(epoch)
            before = self.report.kept
            yield from self._one_epoch(shard, epoch, wanted)
            if self.report.kept == before:
                raise ConfigurationError(f"an epoch without a usable row: {self.report.summary()}")

    def _one_epoch(self, shard: "IterableDataset", epoch: int, wanted: Filter) -> Iterator[Problem]:
        for number, row in enumerate(shard, start=1):
            if number == 1:
                check_columns([row], self.dataset, self.rows, wanted)
            self.report.rows += 1
            try:
                problem = read_row(row, None, self.name, self.rows)
            except MalformedRowError as error:
                where = f"{self.dataset}: row {number} of the stream in epoch {epoch}"
                note_malformed(f"{where}: {error}", self.rows, self.report)
                continue
            reason = wanted.reason(problem) or self.exclusion(problem)
            if reason is None:
                self.report.kept += 1
                yield problem
            else:
                self.report.left_out[reason] += 1


class _OpenStream:
    """A stream and how far it has been read, so that going on costs nothing."""

    def __init__(self, key: tuple[int, int, int], problems: Iterator[Problem]) -> None:
        self.key, self.position, self._problems = key, 0, problems

    def take(self, start: int, count: int) -> list[Problem]:
        for _ in range(start - self.position):
            next(self._problems)
        self.position = start + count
        return [next(self._problems) for _ in range(count)]
