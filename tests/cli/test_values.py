"""Values that cannot work, told from the configuration alone."""

import os
from pathlib import Path
from typing import Any

import pytest

from app.cli.values import unwritable, value_problems


def problems(values: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(path)}: {problem}" for path, problem in value_problems(values)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_epochs": 2}, "trainer.max_epochs: must be 1: data.iterations"),
        ({"max_steps": "100"}, "trainer.max_steps: data.iterations"),
        ({"min_epochs": 3}, "trainer.min_epochs: data.iterations"),
        ({"overfit_batches": 2}, "trainer.overfit_batches: each iteration has its own prompts"),
        ({"accumulate_grad_batches": "4"}, "trainer.accumulate_grad_batches: gradients are summed"),
        ({"gradient_clip_val": "1.0"}, "trainer.gradient_clip_val: model.optimizer.max_grad_norm"),
        ({"enable_checkpointing": "false"}, "trainer.enable_checkpointing: the key checkpoint"),
        ({"precision": "16-mixed"}, "trainer.precision: must be one of 32-true, bf16-mixed, bf16-true, got 16-mixed"),
        ({"precision": 64}, "trainer.precision: must be one of"),
        ({"val_check_interval": 0.5}, "trainer.val_check_interval: counts iterations"),
    ],
)
def test_a_trainers_key_that_another_key_decides_names_that_key(values: dict[str, Any], expected: str) -> None:
    (found,) = problems({"trainer": values})
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "values",
    [
        {"max_epochs": 1, "min_epochs": None, "max_steps": "-1", "min_steps": None, "overfit_batches": 0.0},
        {"accumulate_grad_batches": 1, "gradient_clip_val": None, "enable_checkpointing": None},
        {"precision": None, "val_check_interval": 10},
        {"precision": "32"},
        {"precision": 32},
        {"precision": "bf16"},
        {"precision": "bf16-mixed", "val_check_interval": "00:01:00:00"},
        {"precision": "${name}", "max_steps": "${data.iterations}"},
    ],
)
def test_what_lightning_prints_of_its_defaults_passes(values: dict[str, Any]) -> None:
    assert problems({"trainer": values}) == []


@pytest.mark.parametrize(("seed", "count"), [(0, 0), ("7", 0), (2**32 - 1, 0), (-1, 1), (str(2**32), 1), ("true", 0)])
def test_a_seed_out_of_range_is_refused(seed: Any, count: int) -> None:
    assert len(problems({"seed_everything": seed})) == count


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("run/checkpoints/last.ckpt", "run/hf/config.json", "sharded.ckpt/meta.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "run/checkpoints/lst.ckpt",
            "there is no checkpoint run/checkpoints/lst.ckpt; did you mean run/checkpoints/last",
        ),
        ("run/checkpoints", "run/checkpoints is no checkpoint; did you mean run/checkpoints/last.ckpt?"),
        (
            "run/hf",
            "run/hf is a model's folder, from which a run starts and does not resume: give it as model.policy.path",
        ),
        ("run", "run is no checkpoint but another folder"),
        ("best", "there is no checkpoint best: give the file, such as runs/"),
        ("hpc", "there is no checkpoint hpc: give the file, such as runs/"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(path: str, expected: str, files: Path) -> None:
    (found,) = problems({"ckpt_path": path})
    assert found.startswith(f"ckpt_path: {expected}")


@pytest.mark.parametrize("path", [None, "null", "run/checkpoints/last.ckpt", "sharded.ckpt", "s3://bucket/last.ckpt"])
def test_a_checkpoint_that_may_be_one_passes(path: str | None, files: Path) -> None:
    assert problems({"ckpt_path": path}) == []


def test_a_folder_below_a_file_is_refused_whatever_wants_to_write_there(files: Path) -> None:
    below = "run/hf/config.json/deep"
    values = {"trainer": {"default_root_dir": below}, "export": {"init_args": {"folder": below}}}
    assert problems(values) == [
        f"{key}: {files / 'run/hf/config.json'} is a file, not a folder"
        for key in ("trainer.default_root_dir", "export.folder")
    ]
    assert problems({"export": {"folder": "new/deep"}, "checkpoint": {"folder": None}}) == []


def test_a_folder_without_the_right_to_write_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom permissions do not stop.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != files / "run")
    assert unwritable(Path("run/new")) == f"cannot write into {files / 'run'}"
    assert unwritable(Path("other/new")) is None
