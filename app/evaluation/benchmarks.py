"""How a benchmark is run, and the table that comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.evaluation.intervals import Interval
    from app.evaluation.results import BenchmarkScores

UNGRADED = {
    "timeout_rate": "the grader's time limit",
    "too_long_rate": "an answer too long to grade",
    "unparseable_gold_rate": "a gold answer that cannot be read",
}


@dataclass(frozen=True)
class BenchmarkSettings:
    """How many completions a problem gets and how they are drawn; None keeps the evaluation's common setting.

    Greedy: ``samples: 1, temperature: 0``. Sampled, as papers report AIME: ``samples: 32, temperature: 0.6,
    top_p: 0.95, pass_k: [1, 8, 32]``.

    Attributes:
        samples: completions a problem, the k of avg@k and maj@k.
        temperature: 0 is greedy, with which more than one sample would only be copies.
        top_p: see :class:`SamplingSettings`.
        max_new_tokens: see :class:`SamplingSettings`.
        pass_k: the k of each pass@k, between 1 and ``samples``.
    """

    samples: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    pass_k: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pass_k", tuple(self.pass_k))

    def sampling(self, common: SamplingSettings) -> SamplingSettings:
        """The evaluation's common settings with this benchmark's own put in.

        Raises:
            ConfigurationError: for a value out of its range, or several samples of greedy decoding; its key is that of
                these settings, for they do not know their benchmark's name.
        """
        if self.samples < 1:
            raise ConfigurationError(f"must be at least 1, got {self.samples}", key="samples")
        for k in self.pass_k:
            if not 1 <= k <= self.samples:
                raise ConfigurationError(f"pass@{k} needs k between 1 and samples, {self.samples}", key="pass_k")
        own = {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.max_new_tokens}
        changes: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        settings = replace(common, **changes)
        if settings.temperature == 0 and self.samples > 1:
            rule = f"{self.samples} greedy samples are copies of one: set samples: 1, or a temperature above 0"
            raise ConfigurationError(rule, key="samples")
        return settings


def format_table(scores: Sequence["BenchmarkScores"], macro_average: Mapping[str, "Interval"]) -> str:
    """The table that papers print: a row a benchmark, the macro average of several last; shares in percent.

    Brackets hold 95 % bootstrap intervals over problems. A metric that a benchmark does not have, or that the
    benchmarks do not share, is "–". Completions that could not be graded are named below the table.
    """
    metrics = [name for each in scores for name in each.intervals]
    extra = sorted({name for name in metrics if "@" in name}, key=_metric_order)
    header = [
        "benchmark",
        "problems",
        "samples",
        "accuracy",
        *extra,
        "mean tokens",
        "truncated %",
        "no answer %",
    ]
    rows = [[each.name, str(each.problems), str(each.samples), *_cells(each.intervals, extra)] for each in scores]
    if len(scores) > 1:
        total = str(sum(each.problems for each in scores))
        rows.append(["macro average", total, "–", *_cells(macro_average, extra)])
    notes = [note for each in scores for note in _ungraded(each)]
    return "\n".join([align([header, *rows]), *notes])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: first column to the left, the others to the right, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def percent(interval: "Interval") -> str:
    """A share with its interval, such as ``21.7 [14.2, 29.6]``."""
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _metric_order(name: str) -> tuple[bool, int]:
    """pass@1, pass@2 …, then maj@k, the k of which is the column "samples"."""
    k = name.split("@")[1]
    return (True, 0) if k == "k" else (False, int(k))


def _cells(intervals: Mapping[str, "Interval"], extra: Sequence[str]) -> list[str]:
    shares = [percent(intervals[name]) if name in intervals else "–" for name in ("accuracy", *extra)]
    rates = [f"{100 * intervals[name].value:.1f}" for name in ("truncation_rate", "no_answer_rate")]
    return [*shares, f"{intervals['mean_length'].value:.1f}", *rates]


def _ungraded(scores: "BenchmarkScores") -> list[str]:
    return [
        f"{scores.name}: {100 * scores.intervals[name].value:.2f} % of completions count as wrong: {cause}"
        for name, cause in UNGRADED.items()
        if scores.intervals[name].value > 0
    ]
