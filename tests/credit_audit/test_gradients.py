"""Whole gradients against the exact one of a tabular model, and their statistics against sums written out."""

import math

import pytest
import torch

from app.algorithm.advantages import AdvantageSettings
from app.algorithm.objective import ObjectiveSettings
from app.credit_audit.audit import CreditRules, audit_gradients, prepare
from app.credit_audit.gradients import compare_gradients, products
from app.credit_audit.plan import AuditPlan
from app.rollout.collection import TruncationSettings
from tests.credit_audit.tabular import deciding_tabular, prompts
from tests.credit_audit.test_estimates import audit

# A sum over a completion's tokens: what the policy gradient theorem speaks of.
SUMS = ObjectiveSettings(reduction="constant", max_tokens=1)


def exact_gradient() -> torch.Tensor:
    tabular = deciding_tabular()
    batch = prompts(1)
    value = tabular.values()[tabular.limit, batch.prompt_ids[0][-1], 0]
    (gradient,) = torch.autograd.grad(value, tabular.model.table)
    return gradient.flatten()


@pytest.fixture(scope="module")
def gradients() -> torch.Tensor:
    """[P, V, parameters], GRPO's first and the audited last."""
    found = audit(deciding_tabular(), AuditPlan(problems=30, completions=6, continuations=4), every=2, seed=8)
    rules = CreditRules(SUMS, AdvantageSettings(scale="none", clamp_negative=None), TruncationSettings())
    prepared = prepare(found.problems, rules)
    assert prepared is not None
    before = found.tabular.model.table.detach().clone()
    with torch.inference_mode():  # as under `validate`
        made = audit_gradients(prepared, found.tabular.model, torch.device("cpu"), rules, 1.0)
    assert torch.equal(found.tabular.model.table, before)
    assert found.tabular.model.table.grad is None
    return made


def test_the_audited_gradient_is_that_of_the_expected_reward(gradients: torch.Tensor) -> None:
    exact = exact_gradient()
    along = {name: gradients[:, place] @ exact / exact.square().sum() for name, place in (("grpo", 0), ("audited", -1))}
    errors = {name: float(each.std()) / len(each) ** 0.5 for name, each in along.items()}
    assert errors["audited"] < 0.1
    assert float(along["audited"].mean()) == pytest.approx(1, abs=3 * errors["audited"])
    # GRPO without a scale is unbiased but for its baseline, which holds the completion's own reward: (G − 1)/G
    assert float(along["grpo"].mean()) == pytest.approx(5 / 6, abs=3 * errors["grpo"])
    both = torch.cat([exact.expand(len(gradients), 1, -1), gradients[:, [0, -1]]], dim=1)
    found = compare_gradients(products(both), ["exact", "grpo", "audited"], seed=0, resamples=300)
    assert found["exact"].cosine.low <= 1 <= found["exact"].cosine.high
    assert found["exact"].noise.value == pytest.approx(0, abs=1e-5)
    assert float(gradients[:, 0].var(0).sum()) > 1.5 * float(gradients[:, -1].var(0).sum())


def test_the_statistics_are_those_of_pairs_of_different_problems() -> None:
    few = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(1)) + 1.0
    found = compare_gradients(products(few), ["grpo", "audited"], seed=0, resamples=20)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]

    def mean_product(one: int, other: int) -> float:
        return sum(float(few[i, one] @ few[j, other]) for i, j in pairs) / len(pairs)

    own, audited, product = mean_product(0, 0), mean_product(1, 1), mean_product(0, 1)
    assert found["grpo"].cosine.value == pytest.approx(product / math.sqrt(own * audited), rel=1e-5)
    assert found["grpo"].norm_ratio.value == pytest.approx(math.sqrt(own / audited), rel=1e-5)
    squares = sum(float(few[i, 0] @ few[i, 0]) for i in range(5)) / 5
    assert found["grpo"].noise.value == pytest.approx((squares - own) / own, rel=1e-5)
    sums = few.sum(0)
    seen = float(sums[0] @ sums[1] / (sums[0].norm() * sums[1].norm()))
    assert found["grpo"].cosine_seen.value == pytest.approx(seen, rel=1e-5)


def test_a_problem_that_is_drawn_twice_is_no_pair_of_its_own() -> None:
    """Orthogonal gradients have a mean without a length, whatever is drawn."""
    unit = torch.eye(6)[:, None].expand(6, 2, 6)
    found = compare_gradients(products(unit), ["grpo", "audited"], seed=0, resamples=50)
    assert math.isnan(found["grpo"].norm_ratio.value)
