"""An audit as curves, as tables to print, and as a JSON file."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.credit_audit.audit import AuditResult
from app.credit_audit.comparison import BASE, Place
from app.evaluation.benchmarks import align
from app.evaluation.intervals import Interval
from app.storage.durable import write_bytes

AGREEMENT = ("cosine", "cosine_gain", "sign_share", "credit_share")
GRADIENT = ("cosine", "norm_ratio", "noise")
NONE = "–"


def audit_metrics(result: AuditResult) -> dict[str, float]:
    """What is logged under ``audit/``; a statistic that is not defined is left out."""
    everywhere = result.comparison.everywhere
    found = {
        "reward": result.reward,
        "tokens": float(result.tokens),
        "segments": float(everywhere.segments),
        "distinguished": everywhere.distinguished / max(1, everywhere.segments),
        "reliability": result.comparison.reliability.value,
        "rank_ceiling": result.comparison.rank_ceiling.value,
    }
    for number, place in enumerate(result.comparison.quarters, start=1):
        found[f"advantage/quarter{number}"] = place.advantage.value
    for name, agreement in everywhere.variants.items():
        found |= {f"{name}/{each}": getattr(agreement, each).value for each in AGREEMENT}
        found[f"{name}/rank_correlation"] = result.comparison.rank_correlations[name].value
    for name, gradient in result.gradients.items():
        found |= {f"{name}/gradient_{each}": getattr(gradient, each).value for each in GRADIENT}
    return {f"audit/{name}": value for name, value in found.items() if math.isfinite(value)}


def format_audit(result: AuditResult, title: str) -> str:
    """The section that ``validate`` prints. Brackets hold 95 % bootstrap intervals over problems."""
    return "\n\n".join(["\n".join(_head(result, title)), *_tables(result), *_notes(result)])


def _head(result: AuditResult, title: str) -> Iterator[str]:
    everywhere, comparison = result.comparison.everywhere, result.comparison
    yield f"credit audit of {title}: mean reward {result.reward:.3f}"
    yield (
        f"{result.problems} problems, {result.completions:,} completions in {everywhere.segments:,} segments, "
        f"{result.continuations:,} continuations, {result.tokens:,} tokens"
    )
    if result.left_out:
        yield f"left out: {result.left_out} problems with a completion or continuation that has no reward"
    yield (
        f"advantages distinguished from 0: those of {everywhere.distinguished:,} segments; of all their squares "
        f"{_share(comparison.reliability)} % are no noise; a rank correlation can reach "
        f"{_number(comparison.rank_ceiling)}"
    )


def _tables(result: AuditResult) -> Iterator[str]:
    everywhere = result.comparison.everywhere
    rows = [["variant", "cosine", f"above {BASE}", "rank correlation", "sign met %", "credit well spent %"]]
    for name, each in everywhere.variants.items():
        gain = NONE if name == BASE else _number(each.cosine_gain, "+")
        shares = [_share(each.sign_share), _share(each.credit_share)]
        ranks = _number(result.comparison.rank_correlations[name])
        rows.append([name, _number(each.cosine), gain, ranks, *shares])
    yield align(rows)
    yield _by_place("share of squared credit", result, lambda place, name: place.variants[name].credit, True)
    yield _by_place("cosine", result, lambda place, name: place.variants[name].cosine, False)
    if result.gradients:
        rows = [["gradient of", "cosine", "length ratio", "noise, in problems", "cosine as seen"]]
        for name, found in result.gradients.items():
            cells = [found.cosine, found.norm_ratio, found.noise, found.cosine_seen]
            rows.append([name, *map(_number, cells)])
        yield align(rows)


def _by_place(title: str, result: AuditResult, value: Any, shares: bool) -> str:
    """Quarters of completions, and for what is no share of the whole also thirds of their lengths."""
    comparison = result.comparison
    places: dict[str, Place] = {f"quarter {n}": place for n, place in enumerate(comparison.quarters, start=1)}
    if not shares:
        places |= comparison.lengths
    rows = [[title, *places]]
    if shares:
        rows.append(["true advantage", *(_plain(place.advantage) for place in places.values())])
    for name in comparison.everywhere.variants:
        rows.append([name, *(_plain(value(place, name)) for place in places.values())])
    rows.append(["segments", *(f"{place.segments:,}" for place in places.values())])
    return align(rows)


def _notes(result: AuditResult) -> Iterator[str]:
    if not math.isfinite(result.comparison.everywhere.variants[BASE].cosine.value):
        yield "a cosine without a value: the noise is as large as all that was seen; draw more continuations"


def _number(interval: Interval, sign: str = "") -> str:
    value, low, high = interval
    if not math.isfinite(value):
        return NONE
    ends = f" [{low:{sign}.2f}, {high:{sign}.2f}]" if math.isfinite(low) else ""
    return f"{value:{sign}.2f}{ends}"


def _share(interval: Interval) -> str:
    value, low, high = (100 * each for each in interval)
    if not math.isfinite(value):
        return NONE
    return f"{value:.0f} [{low:.0f}, {high:.0f}]" if math.isfinite(low) else f"{value:.0f}"


def _plain(interval: Interval) -> str:
    return f"{interval.value:.2f}" if math.isfinite(interval.value) else NONE


def write_audit(path: Path, result: AuditResult, settings: Mapping[str, Any]) -> None:
    """Writes everything, each segment included, whole or not at all.

    Args:
        path: of the JSON file; its folder is made.
        result: of the audit.
        settings: of the audit, JSON-able.
    """
    counts = ("problems", "left_out", "completions", "continuations", "tokens", "reward")
    content = {
        "settings": dict(settings),
        **{name: getattr(result, name) for name in counts},
        "comparison": asdict(result.comparison),
        "gradients": {name: asdict(each) for name, each in result.gradients.items()},
        "segments": _columns(result),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(_jsonable(content), indent=1).encode() + b"\n")


def _columns(result: AuditResult) -> dict[str, Any]:
    """One list a column, one entry a segment."""
    segments = result.segments
    exact = {"advantage": segments.advantage, "standard_error": segments.variance.sqrt()}
    exact |= {"low": segments.low, "high": segments.high}
    exact |= {f"credit/{name}": values for name, values in result.credits.items()}
    return {
        "problem": [result.ids[index] for index in segments.problem.tolist()],
        "completion": segments.row.tolist(),
        "start": segments.start.tolist(),
        "end": segments.end.tolist(),
        **{name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in exact.items()},
    }


def _jsonable(value: Any) -> Any:
    """Intervals by the names of their fields; NaN, which JSON does not know, as null."""
    if isinstance(value, Interval):
        return {name: _jsonable(each) for name, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
