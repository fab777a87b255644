"""Scores beside those published for the same model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from app.data.rows import nearest
from app.errors import ConfigurationError
from app.evaluation.benchmarks import align, percent
from app.evaluation.published import PROBLEMS, PUBLISHED, Protocol, Published

if TYPE_CHECKING:
    from app.data.prompts import Style
    from app.engines.engine import SamplingSettings
    from app.evaluation.results import BenchmarkScores

MODELS = {score.model.lower(): score.model for score in PUBLISHED}


@dataclass(frozen=True)
class Conditions:
    """How one benchmark was run here: its sampling, completions a problem, and the style of its prompts."""

    sampling: "SamplingSettings"
    samples: int
    style: "Style"


def reference_model(reference: str | None, path: str | None) -> str | None:
    """The model whose published scores belong beside an evaluation's; None where none is known.

    Args:
        reference: its name, with or without an owner, as it was asked for.
        path: hub id or folder of the policy, the last part of which is taken for a name where nothing was asked for.

    Raises:
        ConfigurationError: no scores of ``reference`` are known.
    """
    name = PurePosixPath((reference or path or "").rstrip("/")).name.lower()
    if reference is not None and name not in MODELS:
        raise ConfigurationError(
            f"no published scores of {reference!r} are known; {nearest(reference, MODELS.values())}",
            key="evaluation.reference",
        )
    return MODELS.get(name)


def compare(
    model: str, scores: Sequence["BenchmarkScores"], conditions: Mapping[str, Conditions]
) -> list[dict[str, Any]]:
    """A row for each published score of ``model`` on a benchmark of ``scores``, JSON-able.

    ``differs`` names what was done in another way than the source did; ``within`` says whether the difference is at
    most the tolerance, None where anything was done in another way.
    """
    rows = []
    for own in scores:
        for score in (each for each in PUBLISHED if each.model == model and each.benchmark == own.name):
            difference = abs(100 * own.intervals["accuracy"].value - score.percent)
            differs = differences(score, own.problems, conditions[own.name])
            rows.append(
                {
                    "benchmark": own.name,
                    "percent": round(100 * own.intervals["accuracy"].value, 2),
                    "published": score.percent,
                    "tolerance": score.tolerance,
                    "within": None if differs else difference <= score.tolerance,
                    "source": score.protocol.name,
                    "place": score.protocol.place,
                    "differs": differs,
                }
            )
    return rows


def differences(score: Published, problems: int, here: Conditions) -> list[str]:
    """What was done here in another way than by the source: ``temperature 0 (0.6)``, the source in brackets."""
    protocol, sampling = score.protocol, here.sampling
    greedy = sampling.temperature == protocol.temperature == 0
    pairs = {
        "problems": (problems, PROBLEMS[score.benchmark]),
        "temperature": (sampling.temperature, protocol.temperature),
        "top_p": (1.0, 1.0) if greedy else (sampling.top_p, protocol.top_p),
        "max_new_tokens": (sampling.max_new_tokens, protocol.max_new_tokens),
    }
    found = [f"{name} {own:g} ({theirs:g})" for name, (own, theirs) in pairs.items() if own != theirs]
    return found + (["prompt"] if not _same_prompt(here.style, protocol) else [])


def _same_prompt(style: "Style", protocol: Protocol) -> bool:
    chat = style.chat != "never"
    return chat and (style.template.strip(), style.system) == (protocol.template, protocol.system)


def format_comparison(model: str, scores: Sequence["BenchmarkScores"], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that ``validate`` prints below its own."""
    intervals = {each.name: each.intervals["accuracy"] for each in scores}
    header = ["benchmark", "here", "published", "tolerance", "within", "source", "made in another way"]
    lines = [
        [
            row["benchmark"],
            percent(intervals[row["benchmark"]]),
            f"{row['published']:.1f}",
            f"± {row['tolerance']:.1f}",
            {True: "yes", False: "no", None: "–"}[row["within"]],
            row["source"],
            ", ".join(row["differs"]) or "–",
        ]
        for row in rows
    ]
    return f"published scores of {model} (docs/expected_scores.md), in percent\n{align([header, *lines])}"
