"""Small real runs in process: a tiny policy on the synthetic task, with Lightning's own trainer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from app.algorithm.advantages import AdvantageSettings
from app.algorithm.objective import ObjectiveSettings
from app.data.problems import Problem, PromptBatch
from app.data.sources import SyntheticSource
from app.engines.engine import Completion, SamplingSettings
from app.policy.models import NewTokenizerSettings, PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.rewards.imported import ImportedReward
from app.rewards.reward import RewardSample
from app.rollout.experience import Rollout
from app.rollout.metric_sums import MetricSums
from callbacks import RolloutCallback
from datamodules import MathPromptDataModule
from datamodules.base import BenchmarkSettings
from modules import GRPOLambdaModule
from tests.models import tiny_config


def digit_share(samples: Sequence[RewardSample]) -> list[float | None]:
    """A reward that an untrained policy earns too: the share of digits among the characters, special tokens apart."""
    texts = [re.sub("<[a-z]+>", "", sample.completion) for sample in samples]
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in texts]


def always_one(samples: Sequence[RewardSample]) -> list[float | None]:
    """Ties every group."""
    return [1.0 for _ in samples]


def half_tied(samples: Sequence[RewardSample]) -> list[float | None]:
    """Ties the groups of problems with an even answer."""
    shares = digit_share(samples)
    return [1.0 if int(each.problem.answer) % 2 == 0 else share for each, share in zip(samples, shares, strict=True)]


def reward(function: str = "digit_share") -> ImportedReward:
    return ImportedReward(path=f"tests.running:{function}")


def policy_settings(kind: str = "llama", **changes: Any) -> PolicySettings:
    config = tiny_config(kind, initializer_range=0.3, **changes)
    del config["vocab_size"]
    return PolicySettings(config=config, tokenizer=NewTokenizerSettings())


def make_module(objective: dict[str, Any] | None = None, **changes: Any) -> GRPOLambdaModule:
    settings: dict[str, Any] = {
        "policy": policy_settings(),
        "objective": ObjectiveSettings(**(objective or {})),
        "optimizer": OptimizerSettings(lr=1e-3, warmup_iterations=2),
        "advantages": AdvantageSettings(clamp_negative=None),
        "seed": 3,
    }
    return GRPOLambdaModule(**(settings | changes))


def make_data(iterations: int = 3, prompts: int = 4, **changes: Any) -> MathPromptDataModule:
    settings: dict[str, Any] = {"train": SyntheticSource(), "seed": 5}
    return MathPromptDataModule(prompts_per_iteration=prompts, iterations=iterations, **(settings | changes))


def make_benchmarks(size: int = 6) -> dict[str, BenchmarkSettings]:
    return {"heldout": BenchmarkSettings(SyntheticSource("heldout", size=size))}


def make_rollouts(**changes: Any) -> RolloutCallback:
    settings: dict[str, Any] = {
        "group_size": 4,
        "sampling": SamplingSettings(max_new_tokens=10),
        "rewards": [reward()],
        "seed": 7,
    }
    return RolloutCallback(**(settings | changes))


def make_trainer(folder: Path, callbacks: Sequence[Callback] = (), **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": str(folder),
        "callbacks": list(callbacks),
    }
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    return Trainer(enable_checkpointing=saves, **(settings | changes))


def fit(
    folder: Path,
    module: Any,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
    **trainer: Any,
) -> Trainer:
    """Trains, from a checkpoint where one is given, and returns the trainer, whose ``callback_metrics`` hold the last
    iteration's."""
    made = make_trainer(folder, callbacks, **trainer)
    made.fit(module, datamodule=data or make_data(), ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return made


def weights_of(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.policy.state_dict().items()}


def equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fake_rollout(rewards: list[list[float]], mark: str) -> Rollout:
    """A graded rollout without a model; ``mark`` is in its ids and texts."""
    groups, size = len(rewards), len(rewards[0])
    problems = [Problem(f"{mark}{g}", "?", "1") for g in range(groups)]
    rows = [[Completion([g, i], [0.0, 0.0], "stop") for i in range(size)] for g in range(groups)]
    texts = [f"{mark}{g}.{i}" for g in range(groups) for i in range(size)]
    flat = [value for group in rewards for value in group]
    batch = PromptBatch(0, problems, [[g] for g in range(groups)])
    return Rollout(batch, rows, texts, flat, {"r": flat}, 0, 2 * len(flat), len(flat))


def over_ranks(*ranks: MetricSums) -> dict[str, float]:
    """What each rank gets where the ranks hold these sums."""
    held: list[dict[str, Any]] = []

    def keep(own: dict[str, Any]) -> list[dict[str, Any]]:
        held.append(own)
        return [own]

    for rank in ranks:
        rank.reduce(keep)
    return ranks[0].reduce(lambda own: held)
