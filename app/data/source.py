"""What a source of problems is, and the base of those that fit in memory."""

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.data.filters import Filter, FilterSettings
from app.data.problems import Problem
from app.data.rows import MalformedPolicy, MalformedRowError, RowSettings, has_column, nearest, read_row
from app.errors import ConfigurationError
from app.seeds import derive_seed

NAMED_ROWS = 10
"""As many malformed rows are named in a summary; the report holds all of them."""


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
        where: the file or dataset that the rows come from.
        row_of_id: the row of each well-formed problem of a numbered source.
    """

    source: str
    rows: int = 0
    kept: int = 0
    malformed: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    where: str = ""
    row_of_id: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether every row became a problem that stays."""
        return not self.malformed and not self.left_out

    def place(self, problem: Problem) -> str:
        """Where a problem stands: ``train.jsonl: row 3``, or source and id where rows have no numbers."""
        number = self.row_of_id.get(problem.id)
        return f"{self.source} {problem.id}" if number is None else f"{self.where}: row {number}"

    def clear(self) -> None:
        """Forgets everything, for a source that is read again from its beginning."""
        self.rows = self.kept = 0
        self.malformed.clear()
        self.left_out.clear()
        self.row_of_id.clear()

    def summary(self, named: int = NAMED_ROWS) -> str:
        """One line: ``gsm8k: 7 of 10 rows kept; left out: 2 level; 1 malformed: train.jsonl: row 3 …``.

        Args:
            named: at most so many malformed rows are named; all are counted.
        """
        parts = [f"{self.source}: {self.kept} of {self.rows} rows kept"]
        if self.left_out:
            parts.append("left out: " + ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items())))
        if self.malformed:
            more = ", …" if len(self.malformed) > named else ""
            parts.append(f"{len(self.malformed)} malformed: {', '.join(self.malformed[:named])}{more}")
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
        self._unreadable: Callable[[Problem], bool] | None = None

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

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """Where the problems come from, as far as it is known: JSON-able, for the record of a run.

        A source of the hub is looked up there first. Raises ConfigurationError where it cannot be had.
        """

    def check_golds(self, unreadable: Callable[[Problem], bool]) -> None:
        """From now on a row is malformed whose gold answer cannot be read, as ``unreadable`` says of its problem."""
        self._unreadable = unreadable

    def note_unreadable(self, problem: Problem, place: str, policy: MalformedPolicy) -> bool:
        """Whether the problem's gold answer cannot be read; it is then counted and named, or refused."""
        if self._unreadable is None or not self._unreadable(problem):
            return False
        shown = problem.answer if len(problem.answer) <= 60 else f"{problem.answer[:60]}…"
        note_malformed(f"{place}: the grader cannot read the gold answer {shown!r}", policy, self.report)
        return True

    def exclude(self, reason: str, predicate: Callable[[Problem], bool]) -> None:
        """Leaves out every problem for which ``predicate`` is true; counted under ``reason``."""
        self._exclusions.append((reason, predicate))

    def exclusion(self, problem: Problem) -> str | None:
        """The reason for which a problem is excluded, None for one that stays."""
        return next((reason for reason, predicate in self._exclusions if predicate(problem)), None)


class FiniteSource(Source):
    """A source that is read whole, once; every epoch is a new permutation of it.

    Args:
        name: see :class:`Source`.
        malformed: what becomes of a problem whose gold answer cannot be read, see :meth:`Source.check_golds`.
    """

    def __init__(self, name: str, malformed: MalformedPolicy = "skip") -> None:
        super().__init__(name)
        self._malformed = malformed
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

    def check_golds(self, unreadable: Callable[[Problem], bool]) -> None:
        super().check_golds(unreadable)
        self._kept = None

    def problems(self) -> list[Problem]:
        if self._loaded is None:
            self._loaded = self.load()
            self._at_load = (Counter(self.report.left_out), list(self.report.malformed))
        if self._kept is None:
            self._kept = self._selected(self._loaded)
        return self._kept

    def draw(self, share: Share) -> list[Problem]:
        problems = self.problems()
        size = len(problems)
        return [problems[_permutation(share.seed, p // size, size)[p % size]] for p in share.positions]

    def _selected(self, loaded: list[Problem]) -> list[Problem]:
        """The problems with a readable gold answer that nothing excludes; the report counts the others anew."""
        left_out, malformed = self._at_load
        report = self.report
        report.left_out.clear()
        report.left_out.update(left_out)
        report.malformed[:] = malformed
        readable = [p for p in loaded if not self.note_unreadable(p, report.place(p), self._malformed)]
        reasons = [self.exclusion(problem) for problem in readable]
        report.left_out.update(reason for reason in reasons if reason is not None)
        kept = [problem for problem, reason in zip(readable, reasons, strict=True) if reason is None]
        report.kept = len(kept)
        if not kept:
            raise ConfigurationError(f"no problem is left in {report.summary(named=3)}")
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
    if not numbered:
        raise ConfigurationError(f"{where} is empty")
    if not problems:
        raise ConfigurationError(f"{where} holds no usable row: {report.summary(named=3)}")
    wanted.check_matches(len(kept), problems, where)
    report.kept = len(kept)
    return kept


def check_columns(rows: list[dict[str, Any]], where: str, settings: RowSettings, wanted: Filter) -> None:
    """Raises ConfigurationError for a needed column that no row has; names the columns there are."""
    ours = ("problem", "answer") if settings.has_answers else ("problem",)
    needed = [settings.column(name) for name in (*ours, *wanted.columns)]
    for column in [*needed, *settings.columns.values()]:
        if rows and not any(has_column(row, column) for row in rows):
            present = {key for row in rows for key in row}
            hint = f"; give columns: {{{column}: NAME}}" if column in ours else ""
            hint += ", or answer_format: none for rewards that ask for no gold answer" if column == "answer" else ""
            raise ConfigurationError(
                f"{where} has no column {column!r}; {nearest(column, present)}{hint}", key="columns"
            )


def note_malformed(line: str, policy: MalformedPolicy, report: LoadReport) -> None:
    """Counts and names a malformed row, or raises ConfigurationError where such rows are refused."""
    report.malformed.append(line)
    if policy == "refuse":
        raise ConfigurationError(f"{line} (set malformed: skip to go on without such rows)", key="malformed")


def _well_formed(
    numbered: list[tuple[int, Any]], where: str, settings: RowSettings, report: LoadReport
) -> list[Problem]:
    problems: list[Problem] = []
    report.where, row_of_id = where, report.row_of_id
    for number, row in numbered:
        try:
            if isinstance(row, MalformedRowError):
                raise row
            problem = read_row(row, number, report.source, settings)
            if problem.id in row_of_id:
                raise MalformedRowError(f"the id {problem.id!r} is that of row {row_of_id[problem.id]} too")
        except MalformedRowError as error:
            note_malformed(f"{where}: row {number}: {error}", settings.malformed, report)
            continue
        row_of_id[problem.id] = number
        problems.append(problem)
    return problems
