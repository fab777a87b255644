"""A run resumed with another configuration: what follows the configuration, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from app.data.sources import SyntheticSource
from app.errors import ConfigurationError
from app.policy.optimizers import OptimizerSettings
from callbacks import IterationCheckpoint
from datamodules import SFTDataModule
from modules import SFTModule
from tests.running import (
    equal_weights,
    fit,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
    weights_of,
)

SLOW = OptimizerSettings(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="linear")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of iteration 2 of 4."""
    folder = tmp_path_factory.mktemp("run")
    keep = IterationCheckpoint(every_n_iterations=2, keep=9, folder=str(folder))
    fit(folder, make_module(optimizer=SLOW), make_data(iterations=4), [make_rollouts(), keep])
    return folder / "iteration-000002.ckpt"


def resume(checkpoint: Path, module: Any, data: Any = None, iterations: int = 3) -> Any:
    trainer = make_trainer(checkpoint.parent, [] if data else [make_rollouts()])
    data = data or make_data(iterations=iterations)
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint), weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("changes", "iterations", "expected"),
    [
        ({}, 4, 1e-3 * (1 - 2 / 3)),
        ({"lr": 1e-2}, 4, 1e-2 * (1 - 2 / 3)),
        ({"schedule": "constant"}, 4, 1e-3),
        ({}, 5, 1e-3 * (1 - 2 / 4)),
    ],
)
def test_the_learning_rate_is_that_of_the_configuration_from_the_first_iteration_on(
    checkpoint: Path, changes: dict[str, Any], iterations: int, expected: float
) -> None:
    seen: list[float] = []
    module = make_module(optimizer=OptimizerSettings(**{**vars(SLOW), **changes}))
    advance = module.advance_schedule
    module.advance_schedule = lambda: seen.append(module.trainer.optimizers[0].param_groups[0]["lr"]) or advance()  # type: ignore[method-assign,func-returns-value]
    trainer = resume(checkpoint, module, iterations=iterations)
    assert seen[0] == pytest.approx(expected)
    assert float(trainer.callback_metrics["policy/lr"]) == pytest.approx(seen[-1])


def test_betas_and_weight_decay_are_those_of_the_configuration(checkpoint: Path) -> None:
    module = make_module(optimizer=OptimizerSettings(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.3))
    matrices, vectors = resume(checkpoint, module).optimizers[0].param_groups
    assert (matrices["betas"], vectors["betas"]) == ((0.8, 0.9), (0.8, 0.9))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)


def test_the_running_means_are_those_of_the_checkpoint(checkpoint: Path) -> None:
    whole, resumed = make_module(optimizer=SLOW), make_module(optimizer=SLOW)
    fit(checkpoint.parent, whole, make_data(iterations=4), [make_rollouts()])
    resume(checkpoint, resumed, iterations=4)
    assert equal_weights(weights_of(whole), weights_of(resumed))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"policy": policy_settings(hidden_size=48)}, "ckpt_path: the weights in the checkpoint do not fit: the shape"),
        (
            {"policy": policy_settings(num_hidden_layers=1)},
            "ckpt_path: the weights in the checkpoint do not fit: the po",
        ),
        ({"policy": policy_settings(num_hidden_layers=9)}, "ckpt_path: the weights in the checkpoint do not fit: they"),
        (
            {"optimizer": OptimizerSettings(name="adamw8bit")},
            "model.optimizer.name: is adamw8bit, but the checkpoint to resume from was made with adamw",
        ),
    ],
)
def test_a_checkpoint_of_another_policy_or_optimiser_is_refused(
    checkpoint: Path, changes: dict[str, Any], expected: str
) -> None:
    if "optimizer" in changes:
        pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigurationError) as caught:
        resume(checkpoint, make_module(**changes))
    assert str(caught.value).startswith(expected)


def test_a_checkpoint_of_the_other_stage_is_refused(checkpoint: Path) -> None:
    data = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=4, iterations=4)
    module = SFTModule(policy_settings(), OptimizerSettings(lr=1e-3))
    with pytest.raises(ConfigurationError, match=r"model\.class_path: is SFTModule, but .* GRPOLambdaModule: to start"):
        resume(checkpoint, module, data)
