"""``application: none`` is GRPO as TRL computes it: its own ``_compute_loss`` runs on the same tensors."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

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


def trl_trainer(log_probs: Tensor, s: ObjectiveSettings, loss_type: str) -> Any:
    """What TRL's loss reads of its trainer, in evaluation mode (so that nothing is divided by accumulation
    steps).

    The model's log-probs are the given ones.
    """
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    return SimpleNamespace(
        **SWITCHED_OFF,
        loss_type=loss_type,
        beta=s.beta,
        epsilon_low=s.clip_low,
        epsilon_high=s.clip_high,
        max_completion_length=s.max_tokens,
        importance_sampling_level="token",
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            log_probs,
            torch.zeros_like(log_probs),
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
