"""The settings that runs are compared by."""

from typing import Any

from lightning import Trainer

from callbacks.rollouts import RolloutCallback

FIRST = ("application", "lam", "lr", "seed", "style")
"""What runs of GRPO-λ differ by most often."""


def run_settings(trainer: Trainer, module: Any) -> dict[str, Any]:
    """Name → value of a run's key settings, under the names of their keys, seldom more than two dozen."""
    optimizer, policy = module.optimizer_settings, module.policy_settings
    found = {
        "model": policy.path or f"new {policy.config['model_type']}",
        "lr": optimizer.lr,
        "schedule": optimizer.schedule,
        "warmup_iterations": optimizer.warmup_iterations,
        "max_grad_norm": optimizer.max_grad_norm,
        "seed": module.seed,
        "iterations": int(trainer.num_training_batches),
    }
    return found | (_learning(trainer, module) if hasattr(module, "objective") else {})


def _learning(trainer: Trainer, module: Any) -> dict[str, Any]:
    objective, advantages, updates = module.objective, module.advantages, module.updates
    found = {
        name: getattr(objective, name)
        for name in ("application", "style", "lam", "gamma", "clip_low", "clip_high", "beta", "reduction", "surrogate")
    }
    found |= {"normalise_trace": objective.normalise_trace}
    found |= {"advantage_scale": advantages.scale, "clamp_negative": advantages.clamp_negative}
    found |= {"per_rollout": updates.per_rollout, "mini_batches": updates.mini_batches}
    found |= {"prompts_per_iteration": getattr(trainer.datamodule, "prompts_per_iteration", None)}
    for callback in trainer.callbacks:
        if isinstance(callback, RolloutCallback):
            sampling = callback.sampling
            found |= {"group_size": callback.group_size, "temperature": sampling.temperature}
            found |= {"max_new_tokens": sampling.max_new_tokens, "truncation": callback.truncation.mode}
    return found
