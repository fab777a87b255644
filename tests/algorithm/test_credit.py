"""Credit against its derivation by hand, over T×T matrices, and against the gradient of a whole update."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.algorithm.applications import APPLICATIONS, NOT_NORMALISED
from app.algorithm.credit import every_variant, ratio_and_clip, token_credit, variant_name
from app.algorithm.objective import ObjectiveSettings, policy_objective
from app.algorithm.traces import STYLES
from tests.algorithm.reference import prefix_mask, trace_matrix

LENGTHS = [9, 1, 0, 6, 12]
SETTINGS = ObjectiveSettings(lam=0.9)


def inputs(spread: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios about ``spread`` wide (NaN on padding, where anything may stand), advantages, and the mask."""
    generator = torch.Generator().manual_seed(3)
    mask = prefix_mask(LENGTHS)
    log_ratio = spread * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return log_ratio.where(mask, float("nan")), torch.tensor([1.5, -0.7, 1.0, -1.2, 0.4], dtype=torch.float64), mask


def by_hand(plain: Tensor, a: float, s: ObjectiveSettings) -> Tensor:
    """One row without padding: Σ_t weight_t·ρ_t·A·[not clipped]·∂ log ρ_t / ∂ℓ_k, each factor written out."""
    n, q = len(plain), s.q
    matrix, one = trace_matrix(n, q, s.style), torch.ones(n, dtype=torch.float64)
    decay = torch.tensor([q ** (n - 1 - t) for t in range(n)], dtype=torch.float64)
    future = torch.stack([sum(q ** (k - t) * plain[k] for k in range(t, n)) for t in range(n)]).exp()  # type: ignore[arg-type]
    weight, growth = {
        "none": (one, 1.0),
        "gspo": (one, 1.0),
        "fipo": (future.clamp(1 - s.fipo_clip, 1 + s.fipo_clip), 1.0),
        "trace": (one, matrix.sum(0).mean()),
        "weight": (matrix.sum(1), matrix.sum(1).mean()),
        "weight_forward": (matrix.sum(0), matrix.sum(0).mean()),
        "weight_reverse": (matrix.sum(0).flip(0), matrix.sum(0).mean()),
        "terminal": (decay, decay.mean()),
    }[s.application]
    slopes = torch.eye(n, dtype=torch.float64)
    slopes = {"trace": matrix, "gspo": torch.full_like(slopes, 1 / n)}.get(s.application, slopes)
    ratio = (slopes @ plain).exp()
    if s.surrogate == "cispo":
        strength = ratio.clamp(1 - s.clip_low, 1 + s.clip_high)
    else:
        limit = float("inf") if s.dual_clip is None else s.dual_clip
        kept = ratio <= 1 + s.clip_high if a > 0 else (ratio >= 1 - s.clip_low) & (ratio <= limit)
        strength = ratio * kept
    return a * slopes.T @ (strength * weight / (growth if s.normalise_trace else 1.0))


def all_settings() -> list[ObjectiveSettings]:
    found = []
    for application in APPLICATIONS:
        for style in STYLES:
            own = replace(SETTINGS, application=application, style=style)
            found += [own, replace(own, surrogate="cispo"), replace(own, dual_clip=1.25)]
            if application not in NOT_NORMALISED:
                found.append(replace(own, normalise_trace=True))
    return found


@pytest.mark.parametrize("settings", all_settings(), ids=lambda s: f"{variant_name(s)}-{s.surrogate}-{s.dual_clip}")
def test_credit_is_that_derived_by_hand(settings: ObjectiveSettings) -> None:
    log_ratio, advantages, mask = inputs()
    credit = token_credit(log_ratio, advantages, mask, settings)
    for row, length in enumerate(LENGTHS):
        expected = by_hand(log_ratio[row, :length], advantages[row].item(), settings) if length else torch.zeros(0)
        torch.testing.assert_close(credit[row, :length], expected.double())
        assert not credit[row, length:].any()


def test_credit_adds_up_to_the_gradient_of_a_whole_update() -> None:
    """Where the loss is a sum, one gradient over log-probs; with importance weights and a choice of tokens."""
    log_ratio, advantages, mask = inputs()
    settings = replace(SETTINGS, reduction="constant", max_tokens=1)
    old = -torch.ones_like(log_ratio)
    log_probs = (old + log_ratio).requires_grad_()
    chosen: dict[str, Any] = {
        "importance_weights": torch.rand(mask.shape).double(),
        "counted": torch.rand(mask.shape) > 0.5,
    }
    loss, _ = policy_objective(log_probs, old, None, advantages, mask, settings, normaliser=1.0, **chosen)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    with torch.no_grad():
        credit = token_credit(log_ratio, advantages, mask, settings, **chosen)
    torch.testing.assert_close(credit, -gradient)
    assert (credit != 0).sum() > 10


def test_at_ratio_1_credit_is_the_advantage_times_a_weight() -> None:
    _, advantages, mask = inputs()
    zero = torch.zeros(mask.shape)
    credit = {name: token_credit(zero, advantages, mask, each) for name, each in every_variant(SETTINGS).items()}
    torch.testing.assert_close(credit["grpo"], (advantages[:, None] * mask).float())
    for style in STYLES:
        torch.testing.assert_close(credit[f"trace_{style}"], credit[f"weight_forward_{style}"])
        columns = trace_matrix(12, SETTINGS.q, style).sum(0)
        torch.testing.assert_close(credit[f"trace_{style}"][4], (0.4 * columns).float())
    assert credit["terminal"][4, -1] == pytest.approx(0.4)


def test_rows_that_took_no_part_have_no_credit() -> None:
    log_ratio, advantages, mask = inputs()
    log_ratio[0] = float("nan")
    for settings in every_variant(SETTINGS).values():
        assert not token_credit(log_ratio, advantages, mask, settings)[0].any()
        assert not ratio_and_clip(log_ratio, advantages, mask, settings)[1][0].any()


def test_the_clip_acts_where_a_token_of_grpo_has_no_credit() -> None:
    log_ratio, advantages, mask = inputs(spread=0.4)
    grpo = replace(SETTINGS, application="none")
    seen, clipped = ratio_and_clip(log_ratio, advantages, mask, grpo)
    assert torch.equal(clipped, (token_credit(log_ratio, advantages, mask, grpo) == 0) & mask)
    assert 0 < clipped.sum() < mask.sum()
    assert torch.equal(seen, log_ratio.where(mask, 0.0))
    trace = torch.stack([trace_matrix(12, SETTINGS.q, "both") @ row for row in log_ratio.nan_to_num()])
    torch.testing.assert_close(ratio_and_clip(log_ratio, advantages, mask, SETTINGS)[0], trace.where(mask, 0.0))


def test_every_variant_holds_the_runs_own_and_names_each_once() -> None:
    names = ["grpo", "trace_recent", "trace_both", "weight_recent", "weight_both"]
    names += ["weight_forward_recent", "weight_forward_both", "terminal"]
    assert list(every_variant(SETTINGS)) == names
    own = ObjectiveSettings(lam=0.5, gamma=0.9, clip_high=0.3, application="weight", style="recent", surrogate="cispo")
    variants = every_variant(own)
    assert variants["weight_recent"] == own
    assert all((each.q, each.clip, each.surrogate) == (0.45, own.clip, "cispo") for each in variants.values())
    for application in APPLICATIONS:
        settings = replace(SETTINGS, application=application)
        variants = every_variant(settings)
        assert variants[variant_name(settings)] == settings
        assert all(variant_name(each) == name for name, each in variants.items())
