"""The definitions written out as T×T matrices and loops in float64: slow, obvious, independent."""

import math
from typing import Any

import torch
from torch import Tensor

MASKS = ([7, 4, 1, 0], [1, 1], [2, 0], [130, 257, 128, 1])


def prefix_mask(lengths: list[int], width: int | None = None) -> Tensor:
    """[B, T] booleans: row b starts with lengths[b] ones."""
    width = max(lengths) if width is None else width
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def coefficient(t: int, steps_back: int, q: float, style: str) -> float:
    """tr(t, l), with 0^0 = 1."""
    return q**steps_back if style == "recent" else max(q**steps_back, q ** (t - steps_back))


def trace_matrix(length: int, q: float, style: str) -> Tensor:
    """M[t, k] = tr(t, t−k) for k ≤ t, [T, T] float64."""
    rows = [[coefficient(t, t - k, q, style) if k <= t else 0.0 for k in range(length)] for t in range(length)]
    return torch.tensor(rows, dtype=torch.float64).reshape(length, length)


def accumulated(log_ratio: Tensor, mask: Tensor, q: float, style: str) -> Tensor:
    """z = M ℓ, row by row over the row's own length."""
    traces = torch.zeros(mask.shape, dtype=torch.float64)
    for row, length in enumerate(mask.sum(1).tolist()):
        traces[row, :length] = trace_matrix(length, q, style) @ log_ratio[row, :length].double()
    return traces


def summed(mask: Tensor, q: float, style: str, direction: str) -> Tensor:
    """Row sums ("backward") or column sums ("forward") of M over each row's own length."""
    sums = torch.zeros(mask.shape, dtype=torch.float64)
    for row, length in enumerate(mask.sum(1).tolist()):
        sums[row, :length] = trace_matrix(length, q, style).sum(1 if direction == "backward" else 0)
    return sums


def _future(z: list[float], t: int, q: float) -> float:
    """What the update has done to the tokens from t on, as a factor that is still to be bounded."""
    return math.exp(sum(q ** (k - t) * z[k] for k in range(t, len(z))))


def _row_terms(z: list[float], length: int, application: str, q: float, style: str) -> tuple[list, list]:
    """(ρ, weight) of one row, from its plain log-ratios."""
    matrix = trace_matrix(length, q, style)
    plain = [math.exp(x) for x in z]
    forms = {
        "none": (plain, [1.0] * length),
        "trace": ((matrix @ torch.tensor(z, dtype=torch.float64)).exp().tolist(), [1.0] * length),
        "weight": (plain, matrix.sum(1).tolist()),
        "weight_forward": (plain, matrix.sum(0).tolist()),
        "weight_reverse": (plain, matrix.sum(0).tolist()[::-1]),
        "gspo": ([math.exp(sum(z) / max(length, 1))] * length, [1.0] * length),
        "fipo": (plain, [_future(z, t, q) for t in range(length)]),
        "terminal": (plain, [q ** (length - 1 - t) for t in range(length)]),
    }
    return forms[application]


KL = {
    "k1": lambda r, ratio: -r,
    "k2": lambda r, ratio: r * r / 2,
    "k3": lambda r, ratio: math.exp(r) - r - 1,
    "k3_ratio": lambda r, ratio: ratio * (math.exp(r) - r - 1),
}


def _surrogate(ratio: float, a: float, s: Any) -> float:
    """min(ρA, clip(ρ)A), with a dual clip at least cA for negative A; the value of "cispo" is clip(ρ)A."""
    clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
    if s.surrogate == "cispo":
        return clipped * a
    lower = min(ratio * a, clipped * a)
    return max(lower, s.dual_clip * a) if s.dual_clip is not None and a < 0 else lower


def _row_loss(inputs: dict[str, Tensor], row: int, length: int, s: Any) -> list[float]:
    """The per-token losses of one row."""
    q = s.gamma * s.lam
    new, old, ref = (inputs[name][row].tolist() for name in ("log_probs", "old_log_probs", "ref_log_probs"))
    plain = [new[t] - old[t] for t in range(length)]
    ratios, weights = _row_terms(plain, length, s.application, q, s.style)
    if s.application == "fipo":
        weights = [min(max(weight, 1 - s.fipo_clip), 1 + s.fipo_clip) for weight in weights]
    if s.normalise_trace and length:
        growth = trace_matrix(length, q, s.style).sum(0).tolist() if s.application == "trace" else weights
        weights = [weight / (sum(growth) / length) for weight in weights]
    losses = []
    for t in range(length):
        advantage = inputs["advantages"][row].reshape(-1).tolist()
        a = advantage[t] if len(advantage) > 1 else advantage[0]
        kl = KL[s.kl_estimator](ref[t] - new[t], math.exp(plain[t]))
        losses.append(-weights[t] * _surrogate(ratios[t], a, s) + s.beta * kl)
    return losses


def objective(inputs: dict[str, Tensor], settings: Any) -> float:
    """The loss of a whole batch, token by token."""
    rows = [_row_loss(inputs, b, n, settings) for b, n in enumerate(inputs["mask"].sum(1).tolist())]
    tokens = sum(len(row) for row in rows)
    if settings.reduction == "token":
        return sum(sum(row) for row in rows) / max(tokens, 1)
    if settings.reduction == "constant":
        return sum(sum(row) for row in rows) / (len(rows) * settings.max_tokens)
    return sum(sum(row) / max(len(row), 1) for row in rows) / len(rows)
