import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.algorithm.applications import APPLICATIONS, NOT_NORMALISED
from app.algorithm.kl import KL_ESTIMATORS
from app.algorithm.objective import ObjectiveSettings, normaliser, policy_objective
from app.algorithm.ratios import MAX_LOG_RATIO
from app.algorithm.settings import REDUCTIONS
from app.algorithm.surrogates import SURROGATES
from app.algorithm.traces import STYLES, accumulate
from app.errors import ConfigurationError
from tests.algorithm import reference

LENGTHS = [9, 1, 2, 0, 6, 5]


def batch(
    lengths: list[int] = LENGTHS,
    width: int | None = None,
    spread: float = 0.3,
    dtype: torch.dtype = torch.float64,
    per_token: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Log-probs that lie about ``spread`` apart, so that both clips act on some tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = reference.prefix_mask(lengths, width)
    old = -torch.rand(mask.shape, generator=generator, dtype=dtype) * 3
    new, ref = (old + spread * torch.randn(mask.shape, generator=generator, dtype=dtype) for _ in range(2))
    advantages = torch.randn(mask.shape if per_token else mask.shape[:1], generator=generator, dtype=dtype)
    return {
        "log_probs": new.requires_grad_(),
        "old_log_probs": old,
        "ref_log_probs": ref,
        "advantages": advantages,
        "mask": mask,
    }


def loss_and_gradient(inputs: dict[str, Any], s: ObjectiveSettings, total: Any = None) -> tuple[Tensor, Tensor]:
    loss, _ = policy_objective(**inputs, settings=s, normaliser=total)
    (gradient,) = torch.autograd.grad(loss, inputs["log_probs"])
    return loss.detach(), gradient


def rows(inputs: dict[str, Any], chosen: slice | list[int]) -> dict[str, Any]:
    return {name: tensor[chosen] for name, tensor in inputs.items()}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_loss_equals_the_definition(style: str, application: str, reduction: str, normalise: bool) -> None:
    normalise = normalise and application not in NOT_NORMALISED
    for lam, per_token, beta, kl in itertools.product((0.0, 0.9, 1.0), (False, True), (0.0, 0.04), KL_ESTIMATORS):
        s = ObjectiveSettings(
            0.95 if lam < 1 else 1.0, lam, style, application, 0.1, 0.25, beta, kl, reduction, normalise, 12
        )
        inputs = batch(per_token=per_token)
        loss, _ = policy_objective(**inputs, settings=s)
        assert loss.item() == pytest.approx(reference.objective(inputs, s), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("application", sorted(APPLICATIONS.keys() - {"fipo"}))  # whose weight is held constant
@pytest.mark.parametrize("style", STYLES)
def test_gradients_equal_finite_differences(style: str, application: str) -> None:
    inputs = batch()
    log_probs = inputs.pop("log_probs")
    normalise = application not in NOT_NORMALISED
    s = ObjectiveSettings(lam=0.9, style=style, application=application, beta=0.1, normalise_trace=normalise)
    assert torch.autograd.gradcheck(lambda x: policy_objective(x, **inputs, settings=s)[0], (log_probs,))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("q", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("style", STYLES)
def test_first_update_weighs_tokens_by_forward_sums(style: str, q: float, normalise: bool) -> None:
    """Fact 1: at π_θ = π_old, ``trace`` and ``weight_forward`` both give token k the gradient −A·W_k."""
    inputs = batch(spread=0.0)
    mask = inputs["mask"]
    weight = reference.summed(mask, q, style, "forward")
    if normalise:
        weight = weight / (weight.sum(1) / mask.sum(1).clamp(min=1)).clamp(min=1e-9).unsqueeze(1)
    expected = -inputs["advantages"].unsqueeze(1) * weight / mask.sum()
    for application in ("trace", "weight_forward"):
        s = ObjectiveSettings(lam=q, style=style, application=application, reduction="token", normalise_trace=normalise)
        torch.testing.assert_close(loss_and_gradient(inputs, s)[1], expected)


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_importance_weights_multiply_the_gradient_of_each_token(style: str, application: str) -> None:
    """Every token's own, also where the loss of later tokens holds it; the KL term and all values stay."""
    inputs = batch()
    importance = torch.rand(inputs["mask"].shape, dtype=torch.float64) * 2
    for beta in (0.0, 0.3):
        s = ObjectiveSettings(lam=0.9, style=style, application=application, beta=beta)
        plain, gradient = loss_and_gradient(inputs, s)
        policy_alone = loss_and_gradient(inputs, replace(s, beta=0.0))[1]
        weighted, metrics = policy_objective(**inputs, settings=s, importance_weights=importance)
        (found,) = torch.autograd.grad(weighted, inputs["log_probs"])
        assert weighted.item() == plain.item()
        torch.testing.assert_close(found, importance * policy_alone + (gradient - policy_alone))
        assert metrics["policy_loss"] == policy_objective(**inputs, settings=s)[1]["policy_loss"]


def test_a_token_without_importance_gets_no_gradient_through_the_traces_of_later_ones() -> None:
    inputs = batch([6], spread=0.0)
    importance = torch.tensor([[0.0, 1.0, 0.5, 1.0, 1.0, 1.0]], dtype=torch.float64)
    s = ObjectiveSettings(lam=0.9, style="recent", application="trace", reduction="token")
    loss, _ = policy_objective(**inputs, settings=s, importance_weights=importance)
    (gradient,) = torch.autograd.grad(loss, inputs["log_probs"])
    sums = torch.tensor([sum(0.9**k for k in range(6 - token)) for token in range(6)], dtype=torch.float64)
    torch.testing.assert_close(gradient, -inputs["advantages"][:, None] * importance * sums / 6)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_gradients_of_the_kl_estimators_are_those_that_are_documented(estimator: str) -> None:
    """Their expectation over all tokens of a distribution, at fixed samples, against autograd through the KL itself."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    expected = {
        "k1": 0.0 * log_probs.sum(),
        "k2": (log_probs.exp() * (log_probs - ref)).sum(),
        "k3": (ref.exp() * (ref - log_probs)).sum(),
        "k3_ratio": (log_probs.exp() * (log_probs - ref)).sum(),
    }[estimator]
    per_token = KL_ESTIMATORS[estimator](ref - log_probs, log_probs - log_probs.detach())
    in_expectation = (log_probs.exp().detach() * per_token).sum()
    wanted = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(in_expectation, logits)[0], wanted, rtol=1e-9, atol=1e-12)


def test_at_ratio_1_k3_times_the_ratio_has_the_gradient_of_k2() -> None:
    inputs = batch() | {"advantages": torch.zeros(len(LENGTHS), dtype=torch.float64)}
    inputs["old_log_probs"] = inputs["log_probs"].detach()
    k2, corrected = (loss_and_gradient(inputs, ObjectiveSettings(beta=1.0, kl_estimator=k)) for k in ("k2", "k3_ratio"))
    torch.testing.assert_close(corrected[1], k2[1])
    assert corrected[0].item() != pytest.approx(k2[0].item(), rel=1e-3)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_trace_left_is_grpo_bit_for_bit(reduction: str) -> None:
    """Fact 3, in float32: λ = 0 with ``recent`` is GRPO in value and gradient; with ``both`` it is not."""
    inputs = batch([300, 128, 17, 0], dtype=torch.float32)
    plain = ObjectiveSettings(application="none", beta=0.04, reduction=reduction, max_tokens=300)
    traced = replace(plain, application="trace", lam=0.0, style="recent")
    for expected, actual in zip(loss_and_gradient(inputs, plain), loss_and_gradient(inputs, traced), strict=True):
        assert torch.equal(expected, actual)
    kept = loss_and_gradient(inputs, replace(traced, style="both"))
    assert not torch.isclose(kept[0], loss_and_gradient(inputs, plain)[0], rtol=1e-3)


def test_gamma_and_lambda_only_enter_as_their_product() -> None:
    inputs = batch()
    one, other = ObjectiveSettings(gamma=0.5, lam=0.8), ObjectiveSettings(gamma=0.8, lam=0.5)
    assert one.q == other.q == 0.4
    assert torch.equal(loss_and_gradient(inputs, one)[1], loss_and_gradient(inputs, other)[1])


def sensible(surrogate: str, dual_clip: float | None, **options: Any) -> ObjectiveSettings:
    """Without what is refused."""
    normalise = options.pop("normalise_trace") and options["application"] not in NOT_NORMALISED
    bound = dual_clip if surrogate == "ppo" else None
    return ObjectiveSettings(surrogate=surrogate, dual_clip=bound, normalise_trace=normalise, **options)


every_setting = st.builds(
    sensible,
    surrogate=st.sampled_from(list(SURROGATES)),
    dual_clip=st.sampled_from([None, 1.1]),
    gamma=st.floats(0.5, 1),
    lam=st.floats(0, 1),
    style=st.sampled_from(list(STYLES)),
    application=st.sampled_from(list(APPLICATIONS)),
    clip_low=st.floats(0, 1),
    clip_high=st.floats(0, 1),
    beta=st.sampled_from([0.0, 0.1]),
    kl_estimator=st.sampled_from(list(KL_ESTIMATORS)),
    reduction=st.sampled_from(REDUCTIONS),
    normalise_trace=st.booleans(),
    max_tokens=st.just(40),
)
some_lengths = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(every_setting, some_lengths, st.integers(0, 99), st.booleans())
def test_micro_batches_add_up(s: ObjectiveSettings, lengths: list[int], seed: int, per_token: bool) -> None:
    inputs = batch(lengths, max(lengths) + 1, per_token=per_token, seed=seed)
    loss, gradient = loss_and_gradient(inputs, s)
    cut = seed % len(lengths)
    parts = [rows(inputs, slice(None, cut)), rows(inputs, slice(cut, None))]
    total = sum(normaliser(part["mask"], s) for part in parts)
    pieces = [policy_objective(**part, settings=s, normaliser=total)[0] for part in parts]
    (summed,) = torch.autograd.grad(sum(pieces), inputs["log_probs"])
    torch.testing.assert_close(sum(pieces).detach(), loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(summed, gradient, rtol=1e-10, atol=1e-12)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(every_setting, some_lengths, st.integers(0, 99), st.booleans())
def test_padding_changes_nothing(s: ObjectiveSettings, lengths: list[int], seed: int, per_token: bool) -> None:
    inputs = batch(lengths, per_token=per_token, seed=seed)
    wide = dict(inputs)
    for name, filler in {
        "log_probs": math.nan,
        "old_log_probs": -math.inf,
        "ref_log_probs": math.nan,
    }.items():
        garbage = inputs[name].detach().where(inputs["mask"], filler)
        wide[name] = torch.nn.functional.pad(garbage, (0, 5), value=filler)
    wide["mask"] = torch.nn.functional.pad(inputs["mask"], (0, 5))
    if per_token:
        wide["advantages"] = torch.nn.functional.pad(inputs["advantages"], (0, 5), value=math.nan)
    wide["log_probs"].requires_grad_()
    loss, gradient = loss_and_gradient(inputs, s)
    wide_loss, wide_gradient = loss_and_gradient(wide, s)
    torch.testing.assert_close(wide_loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wide_gradient[:, : gradient.shape[1]], gradient, rtol=1e-12, atol=1e-12)
    assert (wide_gradient[~wide["mask"]] == 0).all()


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_huge_ratios_stay_finite(application: str, sign: float) -> None:
    """A log-ratio of 200 overflows float32; e^10 is met in practice and must be left as it is."""
    for drift in (200.0, -200.0, 10.0, -10.0):
        inputs = batch([40, 3], dtype=torch.float32)
        inputs["log_probs"] = (inputs["old_log_probs"] + drift).requires_grad_()
        inputs["advantages"] = torch.full((2,), sign)
        s = ObjectiveSettings(application=application, beta=0.1)
        loss, gradient = loss_and_gradient(inputs, s)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_ratios_up_to_the_bound_are_exact() -> None:
    log_probs = torch.tensor([[MAX_LOG_RATIO - 0.5]])
    s = ObjectiveSettings(application="none")
    loss, _ = policy_objective(log_probs, torch.zeros(1, 1), None, torch.tensor([-1.0]), torch.ones(1, 1), s)
    assert loss == log_probs.exp()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("application", APPLICATIONS)
def test_a_batch_without_tokens_costs_nothing(application: str, reduction: str) -> None:
    normalise = application not in NOT_NORMALISED
    s = ObjectiveSettings(
        application=application, reduction=reduction, normalise_trace=normalise, max_tokens=4, beta=0.1
    )
    for inputs in (batch([0, 0], 4), rows(batch(), slice(0, 0))):
        inputs["log_probs"] = inputs["log_probs"].detach().requires_grad_()
        for total in (None, normaliser(inputs["mask"], s)):
            loss, gradient = loss_and_gradient(inputs, s, total)
            assert loss == 0
            assert (gradient == 0).all()
        _, metrics = policy_objective(**inputs, settings=s)
        assert metrics.pop("rows") == len(inputs["mask"])
        assert all(value == 0 for value in metrics.values())


def test_normaliser_counts_rows_and_tokens() -> None:
    mask = reference.prefix_mask(LENGTHS)
    s = ObjectiveSettings(max_tokens=50)
    counts = {name: normaliser(mask, replace(s, reduction=name)).item() for name in REDUCTIONS}
    assert counts == {"sequence": 6.0, "token": 23.0, "constant": 300.0}


@pytest.mark.parametrize("application", ["none", "trace"])
def test_metrics_mean_what_they_say(application: str) -> None:
    inputs = batch(spread=0.6, per_token=True)
    mask, a = inputs["mask"], inputs["advantages"]
    s = ObjectiveSettings(application=application, lam=0.9, clip_low=0.1, clip_high=0.3, beta=0.5)
    _, metrics = policy_objective(**inputs, settings=s)
    plain = (inputs["log_probs"] - inputs["old_log_probs"]).detach()
    ratio = (plain if application == "none" else accumulate(plain, mask, 0.9, "both")).exp()[mask]
    back = (inputs["ref_log_probs"] - inputs["log_probs"].detach())[mask]
    low, high = (ratio < 0.9) & (a[mask] < 0), (ratio > 1.3) & (a[mask] > 0)
    clipped = torch.minimum(ratio * a[mask], ratio.clamp(0.9, 1.3) * a[mask])
    expected = {
        "policy_loss": -clipped.mean(),
        "kl": (back.exp() - back - 1).mean(),
        "kl_loss": 0.5 * (back.exp() - back - 1).mean(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "approx_kl_old": (plain.exp() - plain - 1)[mask].mean(),
        "clip_ratio/low_mean": low.double().mean(),
        "clip_ratio/high_mean": high.double().mean(),
        "clip_ratio/region_mean": (low | high).double().mean(),
        "tokens": torch.tensor(23.0, dtype=torch.float64),
        "rows": torch.tensor(6.0, dtype=torch.float64),
    }
    assert low.any()
    assert high.any()
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected[name], msg=name)


def test_metrics_of_micro_batches_combine() -> None:
    inputs, s = batch(), ObjectiveSettings(beta=0.1)
    _, whole = policy_objective(**inputs, settings=s)
    parts = [policy_objective(**rows(inputs, cut), settings=s)[1] for cut in (slice(0, 2), slice(2, 6))]
    tokens = sum(part["tokens"] for part in parts)
    for name in whole.keys() - {"tokens", "rows", "ratio_max"}:
        combined = sum(part[name] * part["tokens"] for part in parts) / tokens
        torch.testing.assert_close(combined, whole[name])
    assert max(part["ratio_max"] for part in parts) == whole["ratio_max"]


def test_without_beta_the_reference_is_only_logged() -> None:
    inputs, s = batch(), ObjectiveSettings(beta=0.0)
    loss, metrics = policy_objective(**inputs, settings=s)
    inputs["ref_log_probs"] = None
    bare_loss, bare_metrics = policy_objective(**inputs, settings=s)
    assert torch.equal(loss, bare_loss)
    assert metrics.keys() - bare_metrics.keys() == {"kl", "kl_loss"}


def test_low_precision_log_probs_are_worked_on_in_float32() -> None:
    inputs = batch(dtype=torch.bfloat16)
    upcast = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    actual, _ = policy_objective(**inputs, settings=ObjectiveSettings())
    expected, _ = policy_objective(**upcast, settings=ObjectiveSettings())
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantages": torch.zeros(5)}, "advantages"),
        ({"advantages": torch.zeros(6, 1)}, "advantages"),
        ({"mask": torch.ones(6, 8)}, r"\[B, T\]"),
        ({"old_log_probs": torch.zeros(6)}, r"\[B, T\]"),
        ({"ref_log_probs": torch.zeros(6, 1)}, r"\[B, T\]"),
        ({"ref_log_probs": None}, "beta is 0.1, so ref_log_probs must be given"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy_objective(**(batch() | change), settings=ObjectiveSettings(beta=0.1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lam": 1.5}, r"objective.lam: must lie in \[0, 1\], got 1.5"),
        ({"lam": math.nan}, "objective.lam"),
        ({"gamma": -0.1}, "objective.gamma"),
        ({"clip_low": 1.2}, "objective.clip_low"),
        ({"clip_low": -0.1}, "objective.clip_low"),
        ({"clip_high": -0.1}, "objective.clip_high"),
        ({"beta": -0.01}, "objective.beta"),
        ({"beta": math.inf}, "objective.beta"),
        ({"style": "bth"}, "objective.style: unknown name 'bth'; did you mean 'both'"),
        ({"application": "weight_foward"}, "objective.application: .*did you mean 'weight_forward'"),
        ({"kl_estimator": "k4"}, "objective.kl_estimator"),
        ({"reduction": "tokens"}, "objective.reduction: .*did you mean 'token'"),
        ({"reduction": "constant"}, "objective.max_tokens: .*'constant' needs it"),
        ({"max_tokens": 0}, "objective.max_tokens: must be at least 1, got 0"),
        ({"surrogate": "cisp"}, "objective.surrogate: .*did you mean 'cispo'"),
        ({"dual_clip": 1.0}, "objective.dual_clip: must be above 1, or null"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "objective.dual_clip: surrogate 'cispo' bounds every ratio"),
        ({"fipo_clip": 1.5}, "objective.fipo_clip"),
        ({"entropy_bonus": -0.1}, "objective.entropy_bonus"),
        ({"top_entropy_share": 0.0}, "objective.top_entropy_share"),
        (
            {"application": "gspo", "normalise_trace": True},
            "objective.normalise_trace: application 'gspo' has no trace to normalise",
        ),
        (
            {"application": "fipo", "normalise_trace": True},
            "objective.normalise_trace: application 'fipo' has no trace to normalise",
        ),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ObjectiveSettings(**change)


def test_defaults_are_the_contract() -> None:
    assert ObjectiveSettings() == ObjectiveSettings(
        1.0, 0.99, "both", "trace", 0.2, 0.2, 0.0, "k3", "sequence", False, None
    )
