"""Keys of earlier versions and where they are now."""

from collections.abc import Sequence

MOVED = {
    "model.advantage_scale": "model.advantages.scale",
    "model.clamp_negative": "model.advantages.clamp_negative",
    "model.updates_per_rollout": "model.updates.per_rollout",
    "model.mini_batches": "model.updates.mini_batches",
    "rollouts.every_n_iterations": "rollouts.schedule.every_n_iterations",
    "rollouts.generate_ahead": "rollouts.schedule.generate_ahead",
    "rollouts.truncated": "rollouts.truncation.mode",
    "rollouts.truncation_penalty": "rollouts.truncation.penalty",
    "rollouts.correction": "rollouts.mismatch.correction",
    "rollouts.preflight_limit": "rollouts.mismatch.preflight_limit",
}


def moved(path: Sequence[str]) -> str | None:
    """Where the key at ``path``, written with or without ``init_args``, is now; None where it never was."""
    return MOVED.get(".".join(part for part in path if part != "init_args"))
