"""A run of four iterations that takes seconds, as a configuration file."""

from pathlib import Path
from typing import Any

import yaml

from tests.models import tiny_config


def small_run(folder: Path, engine: dict[str, Any]) -> list[str]:
    """The arguments of ``fit`` for a new policy on the synthetic task, with a reward that it can earn.

    Args:
        folder: made; for the configuration, the run's folder and the export ``hf``.
        engine: ``class_path`` and ``init_args`` of the rollouts' engine.
    """
    model = tiny_config("llama", initializer_range=0.3, hidden_size=128, max_position_embeddings=256)
    del model["vocab_size"]
    policy = {"config": model, "tokenizer": {"kind": "synthetic"}}
    reward = {"class_path": "ImportedReward", "init_args": {"path": "tests.running:digit_share"}}
    source = {"class_path": "SyntheticSource"}
    settings: dict[str, Any] = {
        "seed_everything": 3,
        "model": {"class_path": "GRPOLambdaModule", "init_args": {"policy": policy, "optimizer": {"lr": 1e-3}}},
        "data": {
            "class_path": "MathPromptDataModule",
            "init_args": {"train": source, "prompts_per_iteration": 4, "iterations": 4},
        },
        "rollouts": {"group_size": 8, "sampling": {"max_new_tokens": 100}, "rewards": [reward], "engine": engine},
        "checkpoint": {"every_n_iterations": 100},
        "export": {"folder": str(folder / "hf")},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["fit", "--config", str(folder / "run.yaml")]


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of the first run in ``folder``."""
    return folder / "run" / "version_0" / "checkpoints" / "last.ckpt"
