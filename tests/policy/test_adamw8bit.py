"""bitsandbytes' AdamW with 8-bit running means, on a CPU."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.dry_run.memory import Resident, count_parameters, resident_items
from app.errors import ConfigurationError
from app.policy.models import load_policy
from app.policy.optimizers import OptimizerSettings, build_optimizer, trained_parameters
from callbacks import IterationCheckpoint
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

EIGHT_BIT = OptimizerSettings(name="adamw8bit", lr=1e-3, weight_decay=0.1)
WIDE = {"hidden_size": 128, "intermediate_size": 128}
"""Matrices large enough that bitsandbytes keeps their means in 8 bits."""


def module(**optimizer: Any) -> Any:
    return make_module(policy=policy_settings(**WIDE), optimizer=OptimizerSettings(lr=1e-3, **optimizer))


def test_a_missing_library_is_named_before_anything_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    trained = module(name="adamw8bit")
    with pytest.raises(ConfigurationError, match="uv pip install bitsandbytes"):
        fit(tmp_path, trained, make_data(iterations=1), [make_rollouts()])
    assert not hasattr(trained, "policy")


def losses_of_a_regression(settings: OptimizerSettings) -> tuple[list[float], torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.Tanh(), torch.nn.Linear(512, 40))
    inputs, target = torch.randn(64, 128), torch.randn(64, 40).tanh()
    by_dim: tuple[list[Any], list[Any]] = ([], [])
    for parameter in model.parameters():
        by_dim[parameter.dim() == 1].append(parameter)
    optimizer, losses = build_optimizer(*by_dim, settings), []
    for _ in range(40):
        loss = (model(inputs) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses, optimizer


def test_it_learns_as_adamw_does_with_a_byte_a_mean() -> None:
    pytest.importorskip("bitsandbytes")
    losses, optimizer = losses_of_a_regression(EIGHT_BIT)
    exact, _ = losses_of_a_regression(replace(EIGHT_BIT, name="adamw"))
    assert losses[:2] == pytest.approx(exact[:2], rel=1e-5)  # no stored mean has been used yet
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses[3:] != exact[3:]
    assert losses[-1] < 0.1 * losses[0]
    stored = [state["state1"].dtype for state in optimizer.state.values()]
    assert sorted(map(str, stored)) == ["torch.float32"] * 2 + ["torch.uint8"] * 2


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole, resumed = module(name="adamw8bit"), module(name="adamw8bit")
    keep = IterationCheckpoint(every_n_iterations=2, keep=9, folder=str(tmp_path / "checkpoints"))
    fit(tmp_path, whole, make_data(iterations=4), [make_rollouts(), keep])
    trainer = fit_from(tmp_path, resumed, tmp_path / "checkpoints" / "iteration-000002.ckpt")
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed == 4
    assert equal_weights(weights_of(whole), weights_of(resumed))


def fit_from(folder: Path, resumed: Any, saved: Path) -> Any:
    trainer = make_trainer(folder, [make_rollouts()])
    trainer.fit(resumed, datamodule=make_data(iterations=4), ckpt_path=str(saved), weights_only=True)
    return trainer


def test_the_dry_run_knows_what_it_holds() -> None:
    pytest.importorskip("bitsandbytes")
    policy = load_policy(policy_settings(hidden_size=256, intermediate_size=256), 0)
    optimizer = build_optimizer(*trained_parameters(policy), EIGHT_BIT)
    ids = torch.arange(12).view(2, 6)
    policy(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for n, t in state.items() if n.startswith(("state", "absmax"))]
    held = sum(tensor.nbytes for tensor in tensors)
    resident = Resident(count_parameters(policy), gathered_bytes=4, optimizer="adamw8bit")
    items = {item.name: item.bytes for item in resident_items(resident)}
    assert items["optimiser"] == pytest.approx(held, rel=0.1)  # small vectors are kept in float32
