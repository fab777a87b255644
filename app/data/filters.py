"""Which problems of a source are wanted: by level, subject, length, and earlier pass rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.data.json_lines import json_lines
from app.data.problems import Problem
from app.data.rows import MalformedRowError, nearest
from app.errors import ConfigurationError


@dataclass(frozen=True)
class DifficultySettings:
    """Keeps problems by the pass rates of an earlier run.

    Attributes:
        path: JSON lines with ``id`` and ``pass_rate`` (0 to 1) in every row.
        min_pass_rate: problems solved less often than this are left out.
        max_pass_rate: problems solved more often than this are left out.
        keep_unrated: whether problems that the file does not name stay.
    """

    path: str
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    keep_unrated: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ConfigurationError(
                f"0 ≤ min_pass_rate ≤ max_pass_rate ≤ 1 must hold, got {self.min_pass_rate} and {self.max_pass_rate}",
                key="filters.difficulty",
            )
        if not Path(self.path).is_file():
            raise ConfigurationError(f"there is no file {self.path}", key="filters.difficulty.path")


@dataclass(frozen=True)
class FilterSettings:
    """Problems that meet all of these stay.

    Attributes:
        levels: wanted values of the ``level`` column; ``5`` and ``Level 5`` are the same.
        subjects: wanted values of the ``subject`` column, in any case.
        min_characters: shortest problem statement.
        max_characters: longest problem statement.
        difficulty: see :class:`DifficultySettings`.
    """

    levels: list[str | int] | None = None
    subjects: list[str] | None = None
    min_characters: int = 0
    max_characters: int | None = None
    difficulty: DifficultySettings | None = None

    def __post_init__(self) -> None:
        if self.max_characters is not None and self.max_characters < max(self.min_characters, 1):
            raise ConfigurationError(
                f"{self.max_characters} is less than 1 or min_characters, {self.min_characters}",
                key="filters.max_characters",
            )


NO_FILTERS = FilterSettings()


class Filter:
    """``settings`` ready for use; :meth:`reason` says why a problem is left out."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self._levels = None if settings.levels is None else {_level(value) for value in settings.levels}
        self._subjects = None if settings.subjects is None else {value.casefold() for value in settings.subjects}
        self._longest = math.inf if settings.max_characters is None else settings.max_characters
        self._rates = None if settings.difficulty is None else read_pass_rates(settings.difficulty.path)

    @property
    def columns(self) -> list[str]:
        """The columns that the rows must have."""
        wanted = {"level": self._levels, "subject": self._subjects}
        return [name for name, values in wanted.items() if values is not None]

    def reason(self, problem: Problem) -> str | None:
        """``level``, ``subject``, ``length`` or ``difficulty``; None for a problem that stays."""
        if self._levels is not None and _level(problem.extra.get("level")) not in self._levels:
            return "level"
        if self._subjects is not None and str(problem.extra.get("subject")).casefold() not in self._subjects:
            return "subject"
        if not self.settings.min_characters <= len(problem.problem) <= self._longest:
            return "length"
        return None if self._has_wanted_difficulty(problem) else "difficulty"

    def check_matches(self, kept: int, seen: Iterable[Problem], source: str) -> None:
        """Raises ConfigurationError where nothing is left, with the levels and subjects that there are."""
        if kept:
            return
        problems = list(seen)
        for name in self.columns:
            wanted = self.settings.levels if name == "level" else self.settings.subjects
            values = {str(problem.extra.get(name)) for problem in problems}
            raise ConfigurationError(
                f"{source} has no problem of {name} {wanted}; {nearest(str(wanted and wanted[0]), values)}",
                key=f"filters.{name}s",
            )
        raise ConfigurationError(f"no problem of {source} passes the filters {self.settings}", key="filters")

    def _has_wanted_difficulty(self, problem: Problem) -> bool:
        difficulty = self.settings.difficulty
        if difficulty is None or self._rates is None:
            return True
        if problem.id not in self._rates:
            return difficulty.keep_unrated
        return difficulty.min_pass_rate <= self._rates[problem.id] <= difficulty.max_pass_rate


def read_pass_rates(path: str) -> dict[str, float]:
    """id → pass rate. Raises ConfigurationError with the row's number for a row that does not hold both."""
    rates: dict[str, float] = {}
    for number, row in json_lines(Path(path)):
        try:
            if isinstance(row, MalformedRowError):
                raise row
            identifier, rate = str(row["id"]), float(row["pass_rate"])
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, MalformedRowError) else f"holds no id and pass_rate ({error!r})"
            raise ConfigurationError(f"{path}: row {number} {reason}", key="filters.difficulty.path") from error
        if not 0 <= rate <= 1:
            raise ConfigurationError(f"{path}: row {number}: pass_rate {rate} is not in [0, 1]")
        if identifier in rates:
            raise ConfigurationError(f"{path}: row {number}: the id {identifier!r} stands in an earlier row too")
        rates[identifier] = rate
    return rates


def _level(value: object) -> str:
    return str(value).casefold().removeprefix("level").strip()
