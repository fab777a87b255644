"""``application: none`` is GRPO as TRL computes it: its own ``_compute_loss`` runs on the same tensors."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.algorithm.entropy import top_entropy_threshold
from app.algorithm.objective import ObjectiveSettings, policy_objective
from tests.algorithm.test_objective import batch

LOSS_TYPES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
SWITCHED_OFF = {
    "aux_loss_enabled": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "_entropy_bonus_enabled": False,
}


def trl_trainer(log_probs: Tensor, s: ObjectiveSettings, loss_type: str, entropy: Tensor | None = None) -> Any:
    """What TRL's loss reads of its trainer, in evaluation mode (so that nothing is divided by accumulation
    steps).

    The model's log-probs are the given ones.
    """
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    switched = {"top_entropy_quantile": s.top_entropy_share, "_entropy_bonus_enabled": s.entropy_bonus > 0}
    return SimpleNamespace(
        **SWITCHED_OFF | switched,
        loss_type=loss_type,
        beta=s.beta,
        epsilon_low=s.clip_low,
        # For "cispo" TRL's option is the bound itself, else what the bound is above 1.
        epsilon_high=1 + s.clip_high if loss_type == "cispo" else s.clip_high,
        max_completion_length=s.max_tokens,
        importance_sampling_level="sequence" if s.application == "gspo" else "token",
        args=SimpleNamespace(delta=s.dual_clip, use_bias_correction_kl=s.kl_estimator == "k3_ratio"),
        entropy_coef=s.entropy_bonus,
        use_adaptive_entropy=False,
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            log_probs,
            torch.zeros_like(log_probs) if entropy is None else entropy,
            None,
        ),
    )


def trl_inputs(inputs: dict[str, Any]) -> dict[str, Tensor]:
    mask = inputs["mask"].long()
    return {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": inputs["advantages"],
        "old_per_token_logps": inputs["old_log_probs"],
        "ref_per_token_logps": inputs["ref_log_probs"],
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.1, 0.28)])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_gradient_and_metrics(loss_type: str, clips: tuple[float, float], beta: float, per_token: bool) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer  # imported late: it takes seconds

    s = ObjectiveSettings(
        application="none",
        clip_low=clips[0],
        clip_high=clips[1],
        beta=beta,
        reduction=LOSS_TYPES[loss_type],
        max_tokens=32,
    )
    inputs = batch([30, 12, 1, 25, 0, 7], dtype=torch.float32, per_token=per_token)
    trainer = trl_trainer(inputs["log_probs"], s, loss_type)
    expected = GRPOTrainer._compute_loss(trainer, None, trl_inputs(inputs))
    actual, metrics = policy_objective(**inputs, settings=s)
    (expected_gradient,) = torch.autograd.grad(expected, inputs["log_probs"])
    (gradient,) = torch.autograd.grad(actual, inputs["log_probs"])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-7)
    shared = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"] + ["kl"] * (beta > 0)
    for name in shared:
        assert metrics[name].item() == pytest.approx(trainer._metrics["eval"][name][0], rel=1e-5)
        assert metrics[name] > 0


def assert_equal(s: ObjectiveSettings, loss_type: str, per_token: bool = False, constant: bool = False) -> None:
    """Loss and gradient, where ``constant`` says that the losses differ by what has no gradient."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    inputs = batch([30, 12, 1, 25, 3, 7], dtype=torch.float32, per_token=per_token)
    entropy = torch.rand(inputs["mask"].shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    trainer = trl_trainer(inputs["log_probs"], s, loss_type, entropy)
    trainer.get_high_entropy_mask = lambda *given: GRPOTrainer.get_high_entropy_mask(trainer, *given)
    trainer.accelerator.pad_across_processes = lambda x, dim, pad_index: x
    threshold = top_entropy_threshold(entropy[inputs["mask"]].detach(), s.top_entropy_share)
    counted = entropy.detach() >= threshold if s.top_entropy_share < 1 else None
    expected = GRPOTrainer._compute_loss(trainer, None, trl_inputs(inputs))
    actual, _ = policy_objective(**inputs, settings=s, entropy=entropy, counted=counted)
    leaves = [inputs["log_probs"], *([entropy] if s.entropy_bonus else [])]
    if not constant:
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
        assert (found != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_kl_term_with_trls_correction_switched_on(loss_type: str) -> None:
    """TRL's default; "k3" is what it computes with ``use_bias_correction_kl=False``."""
    reduction = LOSS_TYPES[loss_type]
    assert_equal(
        ObjectiveSettings(application="none", beta=0.3, kl_estimator="k3_ratio", reduction=reduction, max_tokens=32),
        loss_type,
    )


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.03, 0.04)])
def test_sequence_level_ratios_are_gspo(clips: tuple[float, float], beta: float) -> None:
    assert_equal(ObjectiveSettings(application="gspo", clip_low=clips[0], clip_high=clips[1], beta=beta), "grpo")


@pytest.mark.slow
@pytest.mark.parametrize("clip_high", [0.1, 4.0])
def test_cispo(clip_high: float) -> None:
    """TRL's value is of log π rather than log ρ: another number with the same gradient."""
    s = ObjectiveSettings(
        application="none", surrogate="cispo", clip_low=1.0, clip_high=clip_high, beta=0.1, reduction="token"
    )
    assert_equal(s, "cispo", constant=True)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_dual_clip_is_trls_delta(loss_type: str) -> None:
    reduction = LOSS_TYPES[loss_type]
    s = ObjectiveSettings(application="none", dual_clip=1.3, reduction=reduction, max_tokens=32)
    assert_equal(s, loss_type, per_token=True)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_the_entropy_bonus(loss_type: str) -> None:
    """TRL's is a mean over tokens whatever the reduction; ours is reduced as the loss is."""
    assert_equal(ObjectiveSettings(application="none", entropy_bonus=0.2, reduction="token"), loss_type)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_share_of_tokens_with_the_highest_entropy(share: float) -> None:
    assert_equal(ObjectiveSettings(application="none", top_entropy_share=share, beta=0.1), "grpo")
