"""Ends a run whose log-probs are not finite before it learns from them, says where they came from, keeps samples."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer

from app.errors import DivergenceError
from app.policy.finite import watched_modules
from app.rollout.not_finite import (
    bad_samples,
    bad_tokens,
    keep_samples,
    message,
    suspected_samples,
    worst_source,
)
from callbacks.run_folder import run_folder

if TYPE_CHECKING:
    from app.rollout.experience import Experience
    from modules.grpo_lambda import GRPOLambdaModule

log = logging.getLogger(__name__)


def check_log_probs(trainer: Trainer, module: "GRPOLambdaModule", experience: "Experience") -> None:
    """Collective.

    Raises:
        DivergenceError: on all ranks, where some are not finite on any; names whose, the samples, and the first module
            of the model that gives such numbers. The samples are kept in ``not_finite`` in the run's folder.
    """
    bad = bad_tokens(experience)
    if not module.max_over_ranks(int(bool(bad))):
        return
    own = bad_samples(experience, bad, trainer.global_rank)
    samples = [sample for rank in module.gather_objects(own) for sample in rank]
    rows = sum(module.gather_objects(len(experience.tokens)))
    origin = _first_module(module, experience, own, worst_source(samples))
    iteration = experience.iteration + 1
    file = run_folder(trainer) / "not_finite" / f"iteration-{iteration:06d}.json"
    if trainer.is_global_zero:
        keep_samples(samples, file)
    raise DivergenceError(message(samples, rows, iteration, origin, file))


def keep_suspects(trainer: Trainer, module: "GRPOLambdaModule") -> None:
    """Writes down the samples of optimiser steps whose gradient was not finite. Each rank has a file of its own, for a
    run may end with such a step."""
    if not getattr(module, "suspects", None) or module.experience is None or module.last_log_ratio is None:
        return
    rank, iteration = trainer.global_rank, module.experience.iteration + 1
    samples = suspected_samples(module.experience, module.suspects, module.last_log_ratio, rank)
    file = run_folder(trainer) / "not_finite" / f"iteration-{iteration:06d}-update-rank{rank}.json"
    keep_samples(samples, file)
    module.suspects = []
    log.warning("iteration %d: samples of the step whose gradient is not finite are kept in %s", iteration, file)


def _first_module(
    module: "GRPOLambdaModule", experience: "Experience", own: list[dict[str, Any]], source: str
) -> str | None:
    """Evaluates one of the samples once more; all ranks do, for a sharded model needs them."""
    model: Any = {"policy": module.policy, "reference": module.reference}.get(source)
    if model is None:
        return None
    row = next((sample["row"] for sample in own if sample["source"] == source), 0)
    with watched_modules(model) as found:
        one = experience.tokens.select([row])
        module.evaluate_tokens(model, one, experience.temperature, parts=[torch.tensor([0])])
    ranks = module.gather_objects(found)
    return next((names[0] for names in ranks if names), None)
