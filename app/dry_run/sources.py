"""What data and model paths resolve to. Reads local files; downloads no data set and no weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.data.hub import HubSource
from app.data.overlap import BenchmarkIndex
from app.data.problems import Problem
from app.data.sources import JsonLinesSource, Source
from app.policy.sources import expanded

if TYPE_CHECKING:
    from app.policy.models import PolicySettings
    from datamodules.base import ProblemDataModule

WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Resolved:
    """A source, and its problems where they can be had without a download.

    Attributes:
        where: one line for the print-out.
        problems: None where they are on the hub or without end.
    """

    where: str
    problems: list[Problem] | None = field(default=None, repr=False)


def resolve(source: Source) -> Resolved:
    """Reads a local source whole.

    Raises:
        ConfigurationError: a local file is broken.
    """
    inner = vars(source).get("_inner", source)  # a registered data set stands before a file or the hub's
    if isinstance(inner, HubSource):
        parts = {"config": inner.config, "split": inner.split, "revision": inner.revision}
        named = ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
        how = "streamed" if inner.streaming else "read when the run starts"
        return Resolved(f"hub: {inner.dataset} ({named}), {how}")
    if not inner.finite:
        return Resolved("made on the spot, without end")
    problems = inner.problems()
    place = str(inner.path) if isinstance(inner, JsonLinesSource) else "made on the spot"
    return Resolved(f"{place}: {inner.report.summary()}", problems)


def first_problems(source: Source, resolved: Resolved, count: int) -> list[Problem]:
    """Up to ``count`` problems to measure prompts on; none where that takes a download."""
    if resolved.problems is not None:
        return resolved.problems[:count]
    if isinstance(vars(source).get("_inner", source), HubSource):
        return []
    from app.data.sources import Share

    return source.draw(Share(seed=0, iteration=0, rank=0, world_size=1, count=count))


def overlap_counts(data: "ProblemDataModule", train: Resolved) -> dict[str, int]:
    """Benchmark → how many of its problems stand in the training set, of those that are at hand."""
    if train.problems is None:
        return {}
    resolved = {name: resolve(settings.source) for name, settings in data.benchmarks.items()}
    index = BenchmarkIndex({name: found.problems for name, found in resolved.items() if found.problems is not None})
    report = index.report(train.problems)
    return {name: len(found.exact | found.gram) for name, found in report.items()}


def policy_place(settings: "PolicySettings") -> str:
    """One line on where the policy comes from."""
    if settings.path is None:
        assert settings.config is not None
        return f"new {settings.config['model_type']} with random weights"
    folder = Path(expanded(settings.path))
    if not folder.is_dir():
        return f"hub: {settings.path} (revision {settings.revision or 'main'})"
    files = [file for pattern in WEIGHT_FILES for file in folder.glob(pattern)]
    size = sum(file.stat().st_size for file in files)
    return f"{folder}: {len(files)} weight file{'s' * (len(files) != 1)} of {size / 2**30:.2f} GiB"
