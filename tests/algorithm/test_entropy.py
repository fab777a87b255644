"""The entropy bonus, and learning from the least certain tokens alone."""

import pytest
import torch

from app.algorithm.entropy import top_entropy_threshold
from app.algorithm.objective import ObjectiveSettings, policy_objective
from tests.algorithm.test_objective import batch


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 101])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.999, 1.0])
def test_as_many_tokens_are_kept_as_reach_the_quantile(tokens: int, share: float) -> None:
    entropy = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)
    kept = entropy >= top_entropy_threshold(entropy, share)
    assert torch.equal(kept, entropy >= torch.quantile(entropy, 1 - share))
    assert 1 <= kept.sum() <= 1 + share * tokens


def test_tokens_that_are_alike_stay_together_and_no_token_is_no_error() -> None:
    assert (torch.ones(5) >= top_entropy_threshold(torch.ones(5), 0.2)).all()
    assert top_entropy_threshold(torch.zeros(0), 0.2) == float("inf")


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
def test_the_bonus_is_reduced_as_the_loss_is(reduction: str) -> None:
    inputs = batch()
    entropy = torch.rand(inputs["mask"].shape, dtype=torch.float64).requires_grad_()
    without = ObjectiveSettings(reduction=reduction, max_tokens=12, beta=0.1)
    settings = ObjectiveSettings(reduction=reduction, max_tokens=12, beta=0.1, entropy_bonus=0.3)
    loss, metrics = policy_objective(**inputs, settings=settings, entropy=entropy)
    plain, _ = policy_objective(**inputs, settings=without)
    real = inputs["mask"]
    rows, lengths = len(real), real.sum(1, keepdim=True).clamp(min=1)
    share = {"sequence": 1 / (rows * lengths), "token": 1 / real.sum(), "constant": torch.tensor(1 / (rows * 12))}
    expected = (share[reduction] * real).expand_as(real)
    assert (plain - loss).item() == pytest.approx(0.3 * (expected * entropy).sum().item())
    torch.testing.assert_close(torch.autograd.grad(loss, entropy)[0], -0.3 * expected.double())
    assert metrics["entropy_loss"].item() == pytest.approx(-0.3 * entropy[real].mean().item())


def test_a_bonus_without_an_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"entropy_bonus is 0\.1, so entropy must be given"):
        policy_objective(**batch(), settings=ObjectiveSettings(entropy_bonus=0.1))


def test_tokens_that_do_not_count_lose_their_policy_term_and_keep_their_kl() -> None:
    inputs = batch()
    counted = torch.rand(inputs["mask"].shape, generator=torch.Generator().manual_seed(2)) < 0.5
    settings = ObjectiveSettings(application="weight", lam=0.9, beta=0.1)
    loss, metrics = policy_objective(**inputs, settings=settings, counted=counted)
    (gradient,) = torch.autograd.grad(loss, inputs["log_probs"])
    everywhere = torch.autograd.grad(policy_objective(**inputs, settings=settings)[0], inputs["log_probs"])[0]
    policy_alone = torch.autograd.grad(
        policy_objective(**inputs, settings=ObjectiveSettings(application="weight", lam=0.9))[0], inputs["log_probs"]
    )[0]
    torch.testing.assert_close(gradient, everywhere - policy_alone.where(~counted, 0.0))
    assert (gradient[counted & inputs["mask"]] != 0).any()
    assert metrics["tokens"] == inputs["mask"].sum()
