"""Objectives beside the clipped minimum: their gradients from the formulas, token by token."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.algorithm.applications import APPLICATIONS
from app.algorithm.objective import ObjectiveSettings, policy_objective
from tests.algorithm import reference
from tests.algorithm.test_objective import batch, loss_and_gradient

PPO = ObjectiveSettings(application="none", reduction="token", clip_low=0.1, clip_high=0.3)


def plain_log_ratio(inputs: dict[str, Any]) -> torch.Tensor:
    return (inputs["log_probs"] - inputs["old_log_probs"]).detach().where(inputs["mask"], 0.0)


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize(("surrogate", "dual_clip"), [("ppo", 1.2), ("cispo", None)])
def test_losses_equal_the_definitions(application: str, surrogate: str, dual_clip: float | None) -> None:
    inputs = batch(spread=0.6)
    s = replace(PPO, application=application, lam=0.9, surrogate=surrogate, dual_clip=dual_clip, fipo_clip=0.4)
    loss, _ = policy_objective(**inputs, settings=s)
    assert loss.item() == pytest.approx(reference.objective(inputs, s), rel=1e-10)
    other = policy_objective(**inputs, settings=replace(s, surrogate="ppo", dual_clip=None))[0]
    assert loss.item() != pytest.approx(other.item(), rel=1e-6)


def test_cispo_weighs_the_gradient_of_every_token_by_its_bounded_ratio() -> None:
    inputs = batch(spread=0.6, per_token=True)
    ratio = plain_log_ratio(inputs).exp()
    expected = -(ratio.clamp(0.9, 1.3) * inputs["advantages"]).where(inputs["mask"], 0.0) / inputs["mask"].sum()
    torch.testing.assert_close(loss_and_gradient(inputs, replace(PPO, surrogate="cispo"))[1], expected)
    assert (loss_and_gradient(inputs, PPO)[1][inputs["mask"]] == 0).any()
    assert (expected[inputs["mask"]] != 0).all()


@pytest.mark.parametrize("style", ["recent", "both"])
def test_cispo_under_the_trace_hands_a_tokens_share_to_all_that_came_before(style: str) -> None:
    inputs = batch(spread=0.2)
    mask, plain = inputs["mask"], plain_log_ratio(inputs)
    s = replace(PPO, application="trace", style=style, lam=0.9, surrogate="cispo")
    expected = torch.zeros_like(plain)
    for row, length in enumerate(mask.sum(1).tolist()):
        matrix = reference.trace_matrix(length, 0.9, style)
        bounded = (matrix @ plain[row, :length]).exp().clamp(0.9, 1.3)
        expected[row, :length] = -inputs["advantages"][row] * (bounded @ matrix) / mask.sum()
    torch.testing.assert_close(loss_and_gradient(inputs, s)[1], expected)


def test_the_dual_clip_bounds_what_a_negative_advantage_counts_and_nothing_else() -> None:
    log_ratio = torch.tensor([[0.0, 2.0, 2.0, -2.0]], dtype=torch.float64)
    advantages = torch.tensor([[-1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    inputs = {"log_probs": log_ratio.requires_grad_(), "old_log_probs": torch.zeros_like(log_ratio)}
    inputs |= {"ref_log_probs": None, "advantages": advantages, "mask": torch.ones(1, 4)}
    free, bound = (loss_and_gradient(inputs, replace(PPO, dual_clip=c)) for c in (None, 3.0))
    assert 4 * free[0].item() == pytest.approx(1 + math.exp(2) - 1.3 + 0.9)
    assert 4 * bound[0].item() == pytest.approx(1 + 3 - 1.3 + 0.9)
    assert 4 * free[1] == pytest.approx(torch.tensor([[1.0, math.exp(2), 0.0, 0.0]], dtype=torch.float64))
    assert 4 * bound[1] == pytest.approx(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    _, metrics = policy_objective(**inputs, settings=replace(PPO, dual_clip=3.0))
    shares = {name.split("/")[1]: value.item() for name, value in metrics.items() if name.startswith("clip_ratio")}
    assert shares == {"low_mean": 0.25, "high_mean": 0.25, "dual_mean": 0.25, "region_mean": 0.75}


def test_under_cispo_the_shares_are_of_bounded_ratios_whatever_the_advantage() -> None:
    inputs = batch(spread=0.6)
    ratio = plain_log_ratio(inputs).exp()[inputs["mask"]]
    _, metrics = policy_objective(**inputs, settings=replace(PPO, surrogate="cispo"))
    assert metrics["clip_ratio/low_mean"] == pytest.approx((ratio < 0.9).double().mean().item())
    assert metrics["clip_ratio/high_mean"] == pytest.approx((ratio > 1.3).double().mean().item())


def test_fipo_is_grpo_with_the_advantage_of_each_token_multiplied_by_a_constant() -> None:
    """And those constants are not all 1, nor all at a bound."""
    inputs = batch(spread=0.1)
    weight = torch.ones_like(inputs["old_log_probs"])
    for row, length in enumerate(inputs["mask"].sum(1).tolist()):
        z = plain_log_ratio(inputs)[row, :length].tolist()
        weight[row, :length] = torch.tensor([reference._future(z, t, 0.9) for t in range(length)])
    weight = weight.clamp(0.8, 1.2)
    free = (weight > 0.81) & (weight < 1.19) & (weight != 1)
    assert free.any()
    scaled = inputs | {"advantages": inputs["advantages"].unsqueeze(1) * weight}
    expected = loss_and_gradient(scaled, PPO)
    found = loss_and_gradient(inputs, replace(PPO, application="fipo", lam=0.9))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_gspo_takes_or_leaves_a_sequence_as_a_whole() -> None:
    """Each token of a row gets s·A / |y|, s the geometric mean of the row's ratios, or nothing where s is clipped."""
    inputs = batch([6, 4, 3, 1], spread=0.4, seed=5)
    lengths = inputs["mask"].sum(1)
    s = (plain_log_ratio(inputs).sum(1) / lengths).exp()
    a = inputs["advantages"]
    clipped = ((s > 1.1) & (a > 0)) | ((s < 0.95) & (a < 0))
    assert 0 < clipped.sum() < len(clipped)
    settings = ObjectiveSettings(application="gspo", clip_low=0.05, clip_high=0.1)
    share = (-s * a / lengths / len(s)).where(~clipped, 0.0)
    expected = share.unsqueeze(1).expand_as(inputs["mask"]).where(inputs["mask"], 0.0)
    torch.testing.assert_close(loss_and_gradient(inputs, settings)[1], expected)
