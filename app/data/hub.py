"""Datasets of the hub (or local files that ``datasets`` reads), whole or streamed."""

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.data.filters import NO_FILTERS, Filter, FilterSettings
from app.data.mixed_columns import as_written, undecoded
from app.data.problems import Problem
from app.data.rows import AnswerFormat, MalformedPolicy, MalformedRowError, RowSettings, read_row
from app.data.source import NAMED_ROWS, FiniteSource, Share, check_columns, note_malformed, read_rows
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

log = logging.getLogger(__name__)


class HubSource(FiniteSource):
    """A dataset that ``datasets.load_dataset`` finds.

    Streamed, nothing is downloaded before it is needed. Each rank reads its own part (whole files where their
    number divides by the ranks, every n-th row otherwise), in an order shuffled by the seed through a buffer
    and again every epoch. A resumed run reads and throws away what came before its iteration: one pass over
    those rows, without tokenising or generating anything. Malformed rows are named as they are met, the first ten
    of each rank.

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
        super().__init__(name or dataset.rstrip("/").split("/")[-1], malformed)
        if shuffle_buffer < 1:
            raise ConfigurationError(f"must be at least 1, got {shuffle_buffer}", key="shuffle_buffer")
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.data_files, self.streaming, self.shuffle_buffer = data_files, streaming, shuffle_buffer
        self.rows = RowSettings(columns or {}, answer_format, malformed, max_characters)
        self.filters = filters
        self._stream: _OpenStream | None = None
        self._found: DatasetBuilder | None = None
        self._mixed: Any = None  # the features where columns hold several types
        self._named = 0

    @property
    def finite(self) -> bool:
        return not self.streaming

    @property
    def streamed(self) -> bool:
        return self.streaming

    def load(self) -> list[Problem]:
        return read_rows(
            enumerate(self._rows(self.open()), start=1), self.dataset, self.rows, self.filters, self.report
        )

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

    def origin(self) -> dict[str, Any]:
        builder = self._builder()
        found = {
            "dataset": self.dataset,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "commit": _commit(builder),
            "data_files": self.data_files,
        }
        return {key: value for key, value in found.items() if value is not None}

    def open(self) -> Any:
        """The ``Dataset`` or ``IterableDataset``, see :func:`app.data.mixed_columns.undecoded`.

        Raises ConfigurationError where it cannot be had.
        """
        builder = self._builder()
        with self._failures_in_one_line():
            if self.streaming:
                found = builder.as_streaming_dataset(split=self.split)
            else:
                builder.download_and_prepare()
                found = builder.as_dataset(split=self.split)
            dataset, self._mixed = undecoded(found)
        return dataset

    def _builder(self) -> "DatasetBuilder":
        """What ``datasets`` found under the name: the branch or tag is resolved to a commit here, once."""
        if self._found is None:
            from datasets import load_dataset_builder

            with self._failures_in_one_line():
                found = load_dataset_builder(
                    self.dataset, self.config, revision=self.revision, data_files=self.data_files
                )
            self._found = self._at_revision(found)
        return self._found

    def _at_revision(self, builder: "DatasetBuilder") -> "DatasetBuilder":
        """``datasets`` takes the latest that its cache holds where the hub cannot be reached, also of another revision:
        the builder of the wanted commit, where that is in the cache, too."""
        commit = _commit(builder)
        if "packaged_modules.cache" in type(builder).__module__ and self.revision not in (None, "main", commit):
            if found := _cached_builder(builder, str(self.revision)):
                return found
            raise ConfigurationError(
                f"{self.dataset} cannot be had from the hub, and the latest in the local cache is commit {commit}, "
                f"which may not be {self.revision!r}: try again with the hub, or set revision to that commit",
                key="revision",
            )
        return builder

    @contextlib.contextmanager
    def _failures_in_one_line(self) -> Iterator[None]:
        from datasets.exceptions import DatasetGenerationError, DatasetsError

        try:
            yield
        except (ValueError, OSError, RuntimeError, DatasetsError) as error:
            wrapped = isinstance(error, DatasetGenerationError)  # which says no more than that it is one
            root = error.__cause__ if wrapped and error.__cause__ is not None else error
            reason = str(root).strip().splitlines()[0] if str(root).strip() else type(root).__name__
            first, *more = self.data_files or [""]
            files = f" of {first}{f' and {len(more)} more' if more else ''}" if first else ""
            raise ConfigurationError(f"cannot load {self.dataset}{files} (split {self.split}): {reason}") from error

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
                raise ConfigurationError(f"an epoch without a usable row: {self.report.summary(named=3)}")

    def _one_epoch(self, shard: "IterableDataset", epoch: int, wanted: Filter) -> Iterator[Problem]:
        for number, row in enumerate(self._rows(shard), start=1):
            if number == 1:
                check_columns([row], self.dataset, self.rows, wanted)
            self.report.rows += 1
            known = len(self.report.malformed)
            problem = self._usable(row, f"{self.dataset}: row {number} of the stream", wanted)
            if epoch > 0:  # the same rows again
                del self.report.malformed[known:]
            self._name_malformed()
            if problem is not None:
                self.report.kept += 1
                yield problem

    def _rows(self, dataset: Any) -> Iterator[Any]:
        """The rows as written; what is met in a file only when it is read there ends the run in one line too."""
        rows = iter(dataset)
        while True:
            with self._failures_in_one_line():
                row = next(rows, None)
            if row is None:
                return
            yield as_written(row, self._mixed)

    def _usable(self, row: Any, place: str, wanted: Filter) -> Problem | None:
        """The row's problem, or None, counted, where it is malformed or left out."""
        try:
            problem = read_row(row, None, self.name, self.rows)
        except MalformedRowError as error:
            note_malformed(f"{place}: {error}", self.rows.malformed, self.report)
            return None
        reason = wanted.reason(problem)
        if reason is None and self.note_unreadable(problem, place, self.rows.malformed):
            return None
        reason = reason or self.exclusion(problem)
        if reason is not None:
            self.report.left_out[reason] += 1
        return problem if reason is None else None

    def _name_malformed(self) -> None:
        for line in self.report.malformed[self._named : NAMED_ROWS]:
            log.warning(line)
            self._named += 1


def _commit(builder: "DatasetBuilder") -> str | None:
    """The hub's commit that a dataset was found at; None for local files."""
    found = str(builder.hash)
    return found if builder.repo_id is not None and re.fullmatch("[0-9a-f]{40}", found) else None


def _cached_builder(latest: "DatasetBuilder", commit: str) -> "DatasetBuilder | None":
    """The builder of another commit in the cache; its folders are ``<dataset>/<config>/<version>/<commit>``."""
    place = Path(latest.cache_dir)
    if not re.fullmatch("[0-9a-f]{40}", commit) or not place.with_name(commit).is_dir():
        return None
    return type(latest)(
        cache_dir=str(place.parents[3]),
        dataset_name=latest.dataset_name,
        config_name=place.parts[-3],
        version=place.parts[-2],
        hash=commit,
        repo_id=latest.repo_id,
    )


class _OpenStream:
    """A stream and how far it has been read, so that going on costs nothing."""

    def __init__(self, key: tuple[int, int, int], problems: Iterator[Problem]) -> None:
        self.key, self.position, self._problems = key, 0, problems

    def take(self, start: int, count: int) -> list[Problem]:
        for _ in range(start - self.position):
            next(self._problems)
        self.position = start + count
        return [next(self._problems) for _ in range(count)]
