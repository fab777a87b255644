"""Log-probabilities that are not finite: noticed before anything is learned from them, and kept for study.

Shapes: B rows, T completion tokens.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from app.rollout.experience import Experience

KEPT = 8
"""Samples of a rank that are written down."""
ADVICE = {
    "policy": "the policy overflows on these tokens: lower model.optimizer.lr and go on from an earlier checkpoint, or "
    "compute in a wider format (trainer.precision)",
    "reference": "the reference policy overflows on these tokens: compute in a wider format (trainer.precision)",
    "engine": "the policy's own are finite: the engine's arithmetic overflows (rollouts.engine.dtype), or its weights "
    "are damaged",
}
"""By whose log-probs are not finite, what to do; in the order in which they are looked at."""


def bad_tokens(experience: "Experience") -> dict[str, Tensor]:
    """[B, T] bool by source ("policy", "reference", "engine"): completion tokens whose log-prob is not finite. Sources
    without one are left out. Waits for the device once."""
    sources = {
        "policy": experience.old_log_probs,
        "reference": experience.ref_log_probs,
        "engine": experience.sampler_log_probs,
    }
    mask = experience.tokens.completion_mask.bool()
    bad = {name: ~values.isfinite() & mask for name, values in sources.items() if values is not None}
    any_bad = torch.stack([tokens.any() for tokens in bad.values()]).tolist()
    return {name: tokens for (name, tokens), here in zip(bad.items(), any_bad, strict=True) if here}


def bad_samples(experience: "Experience", bad: Mapping[str, Tensor], rank: int) -> list[dict[str, Any]]:
    """The rows of this rank behind :func:`bad_tokens`, as JSON takes them: one dictionary a row and source."""
    rows = [
        (name, row, int(tokens[row].int().argmax())) for name, tokens in bad.items() for row in _rows_of(tokens.any(1))
    ]
    return [
        {"source": name, "rank": rank, "first_token": first, **_sample(experience, row)} for name, row, first in rows
    ]


def suspected_samples(experience: "Experience", steps: Sequence[Tensor], log_ratio: Tensor, rank: int) -> list[dict]:
    """Rows of this rank that a gradient that is not finite may come of, as :func:`bad_samples` gives them.

    Args:
        steps: for each such optimiser step its rows, on the CPU.
        log_ratio: [B, T] as the update saw it: where some of a step's are not finite, others are not suspected.
        rank: this one.
    """
    ended = ~log_ratio.isfinite().cpu() & experience.tokens.completion_mask.cpu()
    found = []
    for rows in steps:
        bad = ended[rows].any(1)
        for row in (rows[bad] if bad.any() else rows).tolist():
            first = int(ended[row].int().argmax()) if ended[row].any() else None
            found.append({"source": "update", "rank": rank, "first_token": first, **_sample(experience, row)})
    return found


def _rows_of(chosen: Tensor) -> list[int]:
    return chosen.nonzero()[:, 0].tolist()


def _sample(experience: "Experience", row: int) -> dict[str, Any]:
    rollout = experience.rollout
    group = row // rollout.group_size
    problem, completion = rollout.batch.problems[group], rollout.rows[row]
    length = len(completion.token_ids)
    ref = experience.ref_log_probs
    log_probs = {
        "policy": experience.old_log_probs[row, :length].tolist(),
        "reference": None if ref is None else ref[row, :length].tolist(),
        "engine": completion.log_probs,
    }
    return {
        "row": row,
        "problem_id": problem.id,
        "problem": problem.problem,
        "prompt_ids": list(rollout.batch.prompt_ids[group]),
        "completion": rollout.texts[row],
        "completion_ids": completion.token_ids,
        "log_probs": {name: values and [_json_number(value) for value in values] for name, values in log_probs.items()},
    }


def _json_number(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)


def worst_source(samples: Sequence[Mapping[str, Any]]) -> str:
    """Whose log-probs to look at first, of all that are not finite: an engine samples from what the policy gives it."""
    return next(source for source in ADVICE if any(sample["source"] == source for sample in samples))


def message(samples: Sequence[Mapping[str, Any]], rows: int, iteration: int, module: str | None, file: Path) -> str:
    """One line.

    Args:
        samples: of all ranks, see :func:`bad_samples`; at least one.
        rows: completions of all ranks.
        iteration: from 1.
        module: of the policy or reference, whose output is the first that is not finite; None where it is not known.
        file: where ``samples`` are kept.
    """
    source = worst_source(samples)
    own = [sample for sample in samples if sample["source"] == source]
    first = own[0]
    origin = "" if module is None else f". {module} is the first module whose output is not"
    return (
        f"iteration {iteration}: the {source}'s log-probs are not finite in {len(own)} of {rows} completions, the "
        f"first of problem {first['problem_id']!r} from token {first['first_token']} on, though all weights are"
        f"{origin}; {ADVICE[source]}. The samples are kept in {file}"
    )


def keep_samples(samples: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the first :data:`KEPT` samples of each rank for study."""
    kept: list[Mapping[str, Any]] = []
    for sample in samples:
        if sum(other["rank"] == sample["rank"] for other in kept) < KEPT:
            kept.append(sample)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
