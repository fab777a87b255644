"""Where problems come from, for ``class_path`` and ``init_args`` in a configuration.

:class:`SyntheticSource`, :class:`JsonLinesSource`, :class:`HubSource` and :class:`RegisteredSource`, which
knows the usual datasets by name. A new source is a subclass of :class:`Source` (or of :class:`FiniteSource`,
with ``load``).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.data import synthetic
from app.data.filters import NO_FILTERS, DifficultySettings, FilterSettings
from app.data.hub import HubSource
from app.data.json_lines import json_lines
from app.data.problems import Problem
from app.data.registry import REGISTRY, Registered
from app.data.rows import AnswerFormat, MalformedPolicy, RowSettings, nearest
from app.data.source import FiniteSource, LoadReport, Share, Source, read_rows
from app.errors import ConfigurationError, closest, require_choice
from app.seeds import derive_seed

__all__ = [
    "DifficultySettings",
    "FilterSettings",
    "FiniteSource",
    "HubSource",
    "JsonLinesSource",
    "LoadReport",
    "RegisteredSource",
    "Share",
    "Source",
    "SyntheticSource",
]


class SyntheticSource(Source):
    """The task of :mod:`app.data.synthetic`. Its gold answers are calculated, so that there are none to check.

    Args:
        split: ``train`` or ``heldout``; no problem text is in both, whatever the seeds.
        seed: chooses the problems.
        size: as many different problems, permuted every epoch; without it the stream is endless and every
            iteration brings new ones.
        demonstrations: whether each problem carries a ``solution`` for the supervised stage, whose operator
            is right for half of the verbs only.
        task: ``spread`` (verbs that demonstrations do not settle may stand anywhere) or ``late`` (in the last event
            alone: one token near the end decides, and half of the demonstrations have it right).
    """

    def __init__(
        self,
        split: synthetic.Split = "train",
        seed: int = 0,
        size: int | None = None,
        demonstrations: bool = False,
        task: synthetic.Task = "spread",
    ) -> None:
        super().__init__(f"synthetic_{'late_' if task == 'late' else ''}{split}")
        if split not in ("train", "heldout"):
            raise ConfigurationError(f"is train or heldout, got {split!r}", key="split")
        require_choice(task, synthetic.TASKS, key="task")
        if size is not None and size < 1:
            raise ConfigurationError(f"must be at least 1, got {size}", key="size")
        self.split, self.seed, self.size, self.demonstrations, self.task = split, seed, size, demonstrations, task
        self._finite = None if size is None else _ListedSource(self.name, self._distinct)
        if self._finite is not None:
            self.report = self._finite.report

    @property
    def finite(self) -> bool:
        return self._finite is not None

    def problems(self) -> list[Problem]:
        if self._finite is None:
            raise ConfigurationError(f"{self.name} is endless: give it a size to list its problems", key="size")
        return self._finite.problems()

    def origin(self) -> dict[str, Any]:
        task = {"task": self.task} if self.task != "spread" else {}
        return {"synthetic": self.split, "seed": self.seed, "size": self.size, **task}

    def draw(self, share: Share) -> list[Problem]:
        if self._finite is not None:
            return self._finite.draw(share)
        return [self._at(derive_seed(self.seed, "stream", share.seed), position) for position in share.positions]

    def exclude(self, reason: str, predicate: Callable[[Problem], bool]) -> None:
        super().exclude(reason, predicate)
        if self._finite is not None:
            self._finite.exclude(reason, predicate)

    def _at(self, seed: int, index: int) -> Problem:
        """Problem ``index``; an excluded one gives way to another of the same two numbers."""
        attempt = 0
        while True:
            problem = self._problem(seed if attempt == 0 else derive_seed(seed, "instead", attempt), index)
            if self.exclusion(problem) is None:
                return problem
            attempt += 1
            if attempt == 1000:
                raise ConfigurationError(f"{self.name}: {self.exclusion(problem)} excludes every problem")

    def _problem(self, seed: int, index: int) -> Problem:
        found = synthetic.problem(seed, index, self.split, self.task)
        solution = (
            {"solution": synthetic.demonstration(found.problem, self.seed, self.task)} if self.demonstrations else {}
        )
        return Problem(found.id, found.problem, found.answer, source=self.name, extra=solution)

    def _distinct(self) -> list[Problem]:
        found: dict[str, Problem] = {}
        index = 0
        while len(found) < (self.size or 0):
            problem = self._problem(self.seed, index)
            found.setdefault(problem.problem, problem)
            index += 1
        return list(found.values())


class _ListedSource(FiniteSource):
    def __init__(self, name: str, load: Callable[[], list[Problem]]) -> None:
        super().__init__(name)
        self._list = load

    def origin(self) -> dict[str, Any]:
        return {}

    def load(self) -> list[Problem]:
        problems = self._list()
        self.report.rows = len(problems)
        return problems


class JsonLinesSource(FiniteSource):
    """A file of JSON objects, one a line, in UTF-8.

    Args:
        path: the file.
        name: of the source; the file's stem if not given.
        columns, answer_format, malformed, max_characters: see :class:`app.data.rows.RowSettings`.
        filters: see :class:`app.data.filters.FilterSettings`.

    Raises:
        ConfigurationError: at once where there is no such file; for its contents when they are first read.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        columns: dict[str, str] | None = None,
        answer_format: AnswerFormat = "plain",
        malformed: MalformedPolicy = "skip",
        max_characters: int = 20_000,
        filters: FilterSettings = NO_FILTERS,
    ) -> None:
        super().__init__(name or Path(path).name.split(".")[0], malformed)
        if not Path(path).is_file():
            raise ConfigurationError(_no_such_file(Path(path)), key="path")
        self.path = Path(path)
        self.rows = RowSettings(columns or {}, answer_format, malformed, max_characters)
        self.filters = filters

    def load(self) -> list[Problem]:
        return read_rows(json_lines(self.path), str(self.path), self.rows, self.filters, self.report)

    def origin(self) -> dict[str, Any]:
        return {"file": str(self.path)}


class RegisteredSource(Source):
    """A well-known dataset by name, from the hub or from a folder of JSON-lines files.

    Args:
        name: one of :data:`app.data.registry.REGISTRY`.
        folder: where to look for the dataset's file, at any depth; without it the hub is asked.
        split: another split than the registered one.
        revision: another revision than the registered one.
        streaming: read from the hub while training, without downloading the whole.
        malformed, max_characters: see :class:`app.data.rows.RowSettings`.
        filters: see :class:`app.data.filters.FilterSettings`.
    """

    def __init__(
        self,
        name: str,
        folder: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        malformed: MalformedPolicy = "skip",
        max_characters: int = 20_000,
        filters: FilterSettings = NO_FILTERS,
    ) -> None:
        if name not in REGISTRY:
            raise ConfigurationError(f"no dataset is registered as {name!r}; {nearest(name, REGISTRY)}", key="name")
        super().__init__(name)
        entry = REGISTRY[name]
        split = split or entry.split
        common: dict[str, Any] = {
            "malformed": malformed,
            "max_characters": max_characters,
            "filters": filters,
        }
        if folder is None:
            self._inner: Source = HubSource(
                entry.hub_id,
                config=entry.config,
                split=split,
                revision=revision or entry.revision,
                streaming=streaming,
                name=name,
                columns=dict(entry.columns),
                answer_format=entry.answer_format,
                **common,
            )
        else:
            _refuse_hub_arguments(revision, streaming)
            path = _find_file(Path(folder), entry, split)
            self._inner = JsonLinesSource(str(path), name=name, answer_format=entry.file_answer_format, **common)
        self.report = self._inner.report

    @property
    def finite(self) -> bool:
        return self._inner.finite

    @property
    def streamed(self) -> bool:
        return self._inner.streamed

    def problems(self) -> list[Problem]:
        return self._inner.problems()

    def draw(self, share: Share) -> list[Problem]:
        return self._inner.draw(share)

    def origin(self) -> dict[str, Any]:
        return self._inner.origin()

    def check_golds(self, unreadable: Callable[[Problem], bool]) -> None:
        super().check_golds(unreadable)
        self._inner.check_golds(unreadable)

    def exclude(self, reason: str, predicate: Callable[[Problem], bool]) -> None:
        super().exclude(reason, predicate)
        self._inner.exclude(reason, predicate)


def _refuse_hub_arguments(revision: str | None, streaming: bool) -> None:
    if revision is not None or streaming:
        key = "streaming" if revision is None else "revision"
        raise ConfigurationError("is of the hub: leave it out, or folder", key=key)


def _find_file(folder: Path, entry: Registered, split: str) -> Path:
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {folder}", key="folder")
    names = entry.file_names(split)
    found = [path for name in names for path in sorted(folder.rglob(name))]
    if not found:
        raise ConfigurationError(f"{folder} holds none of {', '.join(names)} for {entry.name}", key="folder")
    return found[0]


def _no_such_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no file {path}: there is no folder {path.parent}"
    near = closest(path.name, (entry.name for entry in path.parent.iterdir()))
    return f"there is no file {path}{f'; did you mean {path.with_name(near)}?' if near else ''}"
