"""What a source of problems is, and the base of those that fit in memory."""

import logging
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.data.filters import Filter, FilterSettings
from app.data.problems import Problem
from app.data.rows import MalformedRowError, RowSettings, has_column, nearest, read_row
from app.errors import ConfigurationError
from app.seeds import derive_seed

log = logging.getLogger(__name__)

NAMED_ROWS = 10
"""As many malformed rows are named in the log; the report holds all of them."""


@dataclass(frozen=True)
class Share:
    """One rank's part of one iteration's global batch: what a batch is a pure function of.

    Attributes:
        seed: the run's data seed.
        iteration: from 0.
        rank: this process, from 0.
        world_size: number of processes.
        count: problems for each rank.
    """

    seed: int
    iteration: int
    rank: int
    world_size: int
    count: int

    @property
    def first_index(self) -> int:
        """Position of the share's first problem in the iteration's global batch."""
        return self.rank * self.count

    @property
    def positions(self) -> range:
        """Positions of the share's problems in the endless global stream of all iterations."""
        start = self.iteration * self.world_size * self.count + self.first_index
        return range(start, start + self.count)


@dataclass
class LoadReport:
    """What became of the rows of a source.

    Attributes:
        source: its name.
        rows: rows read, blank lines not counted.
        kept: problems that remained.
        malformed: one line for every row that is no problem, with file and row number.
        left_out: how many problems each filter or exclusion took away.
    """

    source: str
    rows: int = 0
    kept: int = 0
    malformed: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forgets everything, for a source that is read again from its beginning."""
        self.rows = self.kept = 0
        self.malformed.clear()
        self.left_out.clear()

    def summary(self) -> str:
        """One line: ``gsm8k: 7 of 10 rows kept; left out: 2 level; 1 malformed: train.jsonl: row 3 …``."""
        parts = [f"{self.source}: {self.kept} of {self.rows} rows kept"]
        if self.left_out:
            parts.append("left out: " + ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items())))
        if self.malformed:
            more = ", …" if len(self.malformed) > NAMED_ROWS else ""
            parts.append(f"{len(self.malformed)} malformed: {', '.join(self.malformed[:NAMED_ROWS])}{more}")
        return "; ".join(parts)


class Source(ABC):
    """Problems in an order that depends on nothing but a seed.

    Attributes:
        name: stands in :attr:`Problem.source` and in messages.
        report: what became of the rows so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.report = LoadReport(name)
        self._exclusions: list[tuple[str, Callable[[Problem], bool]]] = []

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether :meth:`problems` can list them all."""

    @property
    def streamed(self) -> bool:
        """Whether it is read in one order only, so that going back costs reading it again."""
        return False

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems in the source's own order. Raises ConfigurationError where there is no end to them."""

    @abstractmethod
    def draw(self, share: Share) -> list[Problem]:
        """``share.count`` problems: a pure function of the share, whatever was drawn before."""

    def exclude(self, reason: str, predicate: Callable[[Problem], bool]) -> None:
        """Leaves out every problem for which ``predicate`` is true; counted under ``reason``."""
        self._exclusions.append((reason, predicate))

    def exclusion(self, problem: Problem) -> str | None:
        """The reason for which a problem is excluded, None for one that stays."""
        return next((reason for reason, predicate in self._exclusions if predicate(problem)), None)


class FiniteSource(Source):
    """A source that is read whole, once; every epoch is a new permutation of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._loaded: list[Problem] | None = None
        self._kept: list[Problem] | None = None

    @abstractmethod
    def load(self) -> list[Problem]:
        """Reads the source and fills :attr:`report`; called once."""

    @property
    def finite(self) -> bool:
        return True

    def exclude(self, reason: str, predicate: Callable[[Problem], bool]) -> None:
        super().exclude(reason, predicate)
        self._kept = None

    def problems(self) -> list[Problem]:
        if self._loaded is None:
            self._loaded = self.load()
            self._left_out_by_load = Counter(self.report.left_out)
        if self._kept is None:
            self._kept = self._without_exclusions(self._loaded)
            if self.report.malformed or self.report.left_out:
                log.warning(self.report.summary())
        return self._kept

    def draw(self, share: Share) -> list[Problem]:
        problems = self.problems()
        size = len(problems)
        return [problems[_permutation(share.seed, p // size, size)[p % size]] for p in share.positions]

    def _without_exclusions(self, problems: list[Problem]) -> list[Problem]:
        left_out = Counter(self._left_out_by_load)
        kept = []
        for problem in problems:
            reason = self.exclusion(problem)
            if reason is None:
                kept.append(problem)
            else:
                left_out[reason] += 1
        self.report.left_out.clear()
        self.report.left_out.update(left_out)
        self.report.kept = len(kept)
        if not kept:
            raise ConfigurationError(f"no problem is left in {self.report.summary()}")
        return kept


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(derive_seed("epoch", seed, epoch)).shuffle(order)
    return order


def read_rows(
    rows: Iterable[tuple[int, Any]],
    where: str,
    settings: RowSettings,
    filters: FilterSettings,
    report: LoadReport,
) -> list[Problem]:
    """The problems in numbered rows that are well-formed and wanted.

    Args:
        rows: (row number, row); a row may be a :class:`MalformedRowError` found while decoding it.
        where: the file or dataset, for messages.
        settings: see :class:`RowSettings`.
        filters: see :class:`FilterSettings`.
        report: is filled.

    Raises:
        ConfigurationError: a column exists in no row; a row is malformed and ``settings.malformed`` is
            ``refuse``; nothing remains.
    """
    numbered = list(rows)
    wanted = Filter(filters)
    check_columns([row for _, row in numbered if isinstance(row, dict)], where, settings, wanted)
    report.rows = len(numbered)
    problems = _well_formed(numbered, where, settings, report)
    reasons = [wanted.reason(problem) for problem in problems]
    report.left_out.update(reason for reason in reasons if reason is not None)
    kept = [problem for problem, reason in zip(problems, reasons, strict=True) if reason is None]
    if not problems:
        raise ConfigurationError(f"{where} holds no usable row: {report.summary()}")
    wanted.check_matches(len(kept), problems, where)
    report.kept = len(kept)
    return kept


def check_columns(rows: list[dict[str, Any]], where: str, settings: RowSettings, wanted: Filter) -> None:
    """Raises ConfigurationError for a needed column that no row has; names the columns there are."""
    needed = [settings.column(name) for name in ("problem", "answer", *wanted.columns)]
    for column in [*needed, *settings.columns.values()]:
        if rows and not any(has_column(row, column) for row in rows):
            present = {key for row in rows for key in row}
            raise ConfigurationError(f"{where} has no column {column!r}; {nearest(column, present)}", key="columns")


def note_malformed(line: str, settings: RowSettings, report: LoadReport) -> None:
    """Counts and names a malformed row, or raises ConfigurationError where such rows are refused."""
    report.malformed.append(line)
    if settings.malformed == "refuse":
        raise ConfigurationError(f"{line} (set malformed: skip to go on without such rows)", key="malformed")


def _well_formed(
    numbered: list[tuple[int, Any]], where: str, settings: RowSettings, report: LoadReport
) -> list[Problem]:
    problems: list[Problem] = []
    row_of_id: dict[str, int] = {}
    for number, row in numbered:
        try:
            if isinstance(row, MalformedRowError):
                raise row
            problem = read_row(row, number, report.source, settings)
            if problem.id in row_of_id:
                raise MalformedRowError(f"the id {problem.id!r} is that of row {row_of_id[problem.id]} too")
        except MalformedRowError as error:
            note_malformed(f"{where}: row {number}: {error}", settings, report)
            continue
        row_of_id[problem.id] = number
        problems.append(problem)
    return problems
