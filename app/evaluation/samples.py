"""Sample logs: ``samples/<benchmark>.jsonl`` in an evaluation's folder, one row a completion.

While an evaluation runs, rank r appends to ``samples/<benchmark>.rank<r>.jsonl``; at its end
:func:`merge_samples` joins the parts. Scores are computed from the merged rows, so that an evaluation that
was interrupted, or ran on another number of ranks, gives the same scores.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from app.errors import ConfigurationError
from app.storage.durable import write_bytes


@dataclass(frozen=True)
class Sample:
    """One graded completion: one row of a sample log.

    Attributes:
        benchmark: the benchmark's name.
        id: the problem's id, unique within the benchmark.
        problem: its statement.
        answer: its gold answer.
        index: 0 … k−1 among the problem's samples.
        completion: the text, see :class:`app.rewards.reward.RewardSample`.
        extracted: the answer that the grader found; None where there is none.
        correct: the verdict.
        reason: the verdict's reason.
        cluster: equal among a problem's samples whose answers are equal; None (no vote) for no answer.
        n_tokens: the completion's length, the end token included.
        finish_reason: "stop" or "length".
        seed: the generation request's seed.
        grader: fingerprint of the grader that gave the verdict.
    """

    benchmark: str
    id: str
    problem: str
    answer: str
    index: int
    completion: str
    extracted: str | None
    correct: bool
    reason: str
    cluster: int | None
    n_tokens: int
    finish_reason: str
    seed: int
    grader: str


def check_name(benchmark: str) -> None:
    """Raises ConfigurationError where a benchmark's name cannot be that of a file."""
    if not re.fullmatch("[A-Za-z0-9_-]+", benchmark):
        raise ConfigurationError(
            f"benchmark name {benchmark!r}: use letters, digits, '_' and '-' only", key="data.benchmarks"
        )


class SampleLog:
    """One rank's growing log of one benchmark's samples; opening it again goes on where it stopped.

    With several ranks, open it on all of them before any of them appends, so that all see the same ``done``.

    Args:
        folder: the evaluation's.
        benchmark: its name: letters, digits, ``_`` and ``-``.
        settings_hash: :func:`fingerprint` of all that the completions depend on (model, data, sampling, seed …).
        samples: completions a problem.
        rank: this process's.

    Attributes:
        done: ids of the problems of which all samples are there, in any rank's file. A last line that a kill
            tore, and the samples of problems that are not complete, are dropped.

    Raises:
        ConfigurationError: where the name cannot be a file's, or the folder holds samples made with other
            settings, or a line that is no sample.
    """

    def __init__(self, folder: str | Path, benchmark: str, settings_hash: str, samples: int, rank: int = 0) -> None:
        check_name(benchmark)
        self.benchmark, self.settings_hash, self.samples = benchmark, settings_hash, samples
        self.path = Path(folder) / "samples" / f"{benchmark}.rank{rank}.jsonl"
        self._file: BinaryIO | None = None
        self._written: set[tuple[str, int]] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_incomplete()
        self.done = frozenset(_completed(folder, benchmark, settings_hash, samples))

    def _drop_incomplete(self) -> None:
        if not self.path.exists():
            return
        kept = _whole_problems(_read(self.path, self.settings_hash), self.samples)
        lines = b"".join(_line(row, self.settings_hash) for rows in kept.values() for row in rows)
        if lines != self.path.read_bytes():
            write_bytes(self.path, lines)

    def append(self, rows: Sequence[Sample]) -> None:
        """Writes rows, and returns when they are on disk.

        Raises:
            ValueError: for a row of another benchmark, or one that is in the log already.
        """
        for row in rows:
            if row.benchmark != self.benchmark:
                raise ValueError(f"a row of {row.benchmark} does not belong into {self.path.name}")
            if row.id in self.done or (row.id, row.index) in self._written:
                raise ValueError(f"sample {row.index} of problem {row.id!r} is in {self.path.name} already")
            self._written.add((row.id, row.index))
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(b"".join(_line(row, self.settings_hash) for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def regrade_samples(
    folder: str | Path,
    benchmark: str,
    settings_hash: str,
    samples: int,
    grader: str,
    regrade: Callable[[list[Sample]], list[Sample]],
) -> int:
    """Gives new verdicts to samples that another grader judged: completions do not depend on it.

    Call it on one rank, before any opens its log.

    Args:
        folder, benchmark, settings_hash, samples: as for :class:`SampleLog`.
        grader: fingerprint of the present grader.
        regrade: samples of whole problems → the same with new verdicts, in order.

    Returns:
        How many samples were graded anew.

    Raises:
        ConfigurationError: see :class:`SampleLog`.
    """
    count = 0
    for path in _parts(folder, benchmark):
        groups = _whole_problems(_read(path, settings_hash), samples).values()
        old = [row for rows in groups if any(row.grader != grader for row in rows) for row in rows]
        if old:
            fresh = {(row.id, row.index): row for row in regrade(old)}
            rows = [fresh.get((row.id, row.index), row) for group in groups for row in group]
            write_bytes(path, b"".join(_line(row, settings_hash) for row in rows))
            count += len(old)
    return count


def merge_samples(
    folder: str | Path, benchmark: str, settings_hash: str, samples: int, problem_ids: Sequence[str]
) -> list[Sample]:
    """Joins all ranks' parts into ``samples/<benchmark>.jsonl`` in the benchmark's order, and removes them.

    Call it on one rank, when all have closed their logs. A problem that two ranks evaluated is taken once,
    from the lower rank. Calling it again gives the same rows.

    Args:
        folder, benchmark, settings_hash, samples: as for :class:`SampleLog`.
        problem_ids: ids of the benchmark's problems, in order.

    Raises:
        ConfigurationError: see :class:`SampleLog`.
        ValueError: where a problem lacks samples or is not the benchmark's.
    """
    found = _completed(folder, benchmark, settings_hash, samples)
    if found.keys() != set(problem_ids):
        missing, foreign = set(problem_ids) - found.keys(), found.keys() - set(problem_ids)
        raise ValueError(f"{benchmark}: samples of {len(missing)} problems are missing, {len(foreign)} are not of it")
    rows = [row for key in problem_ids for row in found[key]]
    path = Path(folder) / "samples" / f"{benchmark}.jsonl"
    write_bytes(path, b"".join(_line(row, settings_hash) for row in rows))
    for part in _parts(folder, benchmark):
        if part != path:
            part.unlink()
    return rows


def read_samples(folder: str | Path, benchmark: str) -> list[Sample]:
    """The rows of a finished benchmark.

    Raises:
        ConfigurationError: where there is no such file, or a line that is no sample.
    """
    path = Path(folder) / "samples" / f"{benchmark}.jsonl"
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist: the evaluation of {benchmark} is not finished")
    return _read(path)


def _parts(folder: str | Path, benchmark: str) -> list[Path]:
    """The merged file, if any, then the ranks' parts in the order of ranks."""
    samples = Path(folder) / "samples"
    ranks = {
        int(match[1]): path
        for path in samples.glob(f"{benchmark}.rank*.jsonl")
        if (match := re.fullmatch(r".*\.rank(\d+)\.jsonl", path.name))
    }
    merged = samples / f"{benchmark}.jsonl"
    return ([merged] if merged.exists() else []) + [ranks[rank] for rank in sorted(ranks)]


def _completed(folder: str | Path, benchmark: str, settings_hash: str, samples: int) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for path in _parts(folder, benchmark):
        found = _whole_problems(_read(path, settings_hash), samples) | found
    return found


def _whole_problems(rows: Sequence[Sample], samples: int) -> dict[str, list[Sample]]:
    """By id, in order of appearance, the rows of problems whose samples are exactly 0 … samples − 1."""
    found: dict[str, list[Sample]] = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    ordered = {key: sorted(group, key=lambda row: row.index) for key, group in found.items()}
    wanted = list(range(samples))
    return {key: group for key, group in ordered.items() if [row.index for row in group] == wanted}


def _line(row: Sample, settings_hash: str) -> bytes:
    # ASCII escapes, because completions hold lone surrogates and line separators that readers stumble over
    return json.dumps(asdict(row) | {"settings": settings_hash}).encode() + b"\n"


def _read(path: Path, settings_hash: str | None = None) -> list[Sample]:
    """All rows of a file, less a last line without its end; refuses rows made with other settings."""
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            cells = json.loads(line)
            row = Sample(**{each.name: cells[each.name] for each in fields(Sample)})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}, row {number}: not a sample ({error!r}); delete it") from error
        if settings_hash is not None and cells.get("settings") != settings_hash:
            raise ConfigurationError(
                f"{path}, row {number}: made with other settings, another precision or other versions than those now "
                "given; choose another output folder or delete this one"
            )
        rows.append(row)
    return rows
