"""The distribution that tokens are drawn from, against transformers' own warpers and exact probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.engines.engine import SamplingSettings
from app.engines.sampling import draw, next_token_log_probs, uniforms

SETTINGS = [
    SamplingSettings(temperature=0.7),
    SamplingSettings(top_k=5),
    SamplingSettings(top_p=0.8),
    SamplingSettings(min_p=0.2),
    SamplingSettings(temperature=1.4, top_k=9, top_p=0.9, min_p=0.05),
    SamplingSettings(temperature=0.6, top_k=1),
    SamplingSettings(top_p=1e-6),
    SamplingSettings(top_k=1000, top_p=0.999, min_p=1e-4),
]


def reference_log_probs(logits, sampling):
    """transformers' warpers, in the order of its ``generate``."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    return LogitsProcessorList(warpers)(torch.zeros(len(logits), 1, dtype=torch.long), logits).log_softmax(-1)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_distribution_is_that_of_transformers(sampling):
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) * 3
    log_probs = next_token_log_probs(logits, sampling)
    torch.testing.assert_close(log_probs, reference_log_probs(logits, sampling), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(200))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=8),
    st.integers(0, 8),
    st.sampled_from([0.3, 0.5, 0.9, 1.0]),
)
def test_ties_leave_a_distribution_with_the_most_likely_token(row, top_k, top_p):
    log_probs = next_token_log_probs(torch.tensor([row]), SamplingSettings(top_k=top_k, top_p=top_p))
    assert math.isclose(log_probs.exp().sum(), 1, rel_tol=1e-5)
    assert log_probs.isfinite()[0, row.index(max(row))]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_draws_follow_the_distribution(sampling):
    """χ² of 40,000 draws; the 99.99 % quantile by the Wilson-Hilferty formula."""
    count = 40_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)) * 1.5
    ids, log_probs = draw(logits.expand(count, -1), sampling, uniforms(7, 0, count))
    exact = reference_log_probs(logits, sampling)[0]
    torch.testing.assert_close(log_probs, exact[ids], atol=1e-5, rtol=1e-5)
    seen, expected = ids.bincount(minlength=12).double(), exact.double().exp() * count
    assert seen[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = int(kept.sum()) - 1
    if degrees > 0:
        assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


def test_greedy_takes_the_most_likely_token_and_ignores_truncation():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    ids, log_probs = draw(logits, SamplingSettings(temperature=0, top_k=3, top_p=0.5), torch.rand(50))
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24, 0.5])
def test_no_uniform_number_reaches_a_removed_token(uniform):
    logits = torch.full((1, 300), -math.inf)
    logits[0, 40:200] = torch.linspace(-30, 2, 160)
    ids, log_probs = draw(logits, SamplingSettings(), torch.tensor([uniform]))
    assert 40 <= int(ids) < 200
    assert log_probs.isfinite().all()


def test_inverse_cdf_takes_the_first_token_whose_sum_passes_the_number():
    logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(5, -1)
    ids, _ = draw(logits, SamplingSettings(), torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51]))
    assert ids.tolist() == [0, 0, 1, 1, 2]


def test_half_precision_logits_are_raised_first():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    log_probs = next_token_log_probs(logits, SamplingSettings(temperature=0.7))
    torch.testing.assert_close(log_probs, (logits.float() / 0.7).log_softmax(-1))


def test_uniform_numbers_depend_on_seed_and_index_alone():
    state = torch.get_rng_state()
    numbers = uniforms(3, 5, 100)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(uniforms(3, 5, 7), numbers[:7])
    assert not torch.equal(uniforms(3, 6, 100), numbers)
    assert not torch.equal(uniforms(4, 5, 100), numbers)
    assert ((numbers >= 0) & (numbers < 1)).all()
