"""Sharded checkpoints bring data along, and nothing that is run."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from app.errors import ConfigurationError
from app.policy.checkpoints import read_weights
from app.storage.checksums import list_files, write_list
from app.storage.shards import METADATA, check_shards, data_only, read_table
from tests.running import policy_settings
from tests.storage.code import Marks

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled.*")
PARTS = ("__0_0.distcp", METADATA, "meta.pt")


def weights() -> dict[str, torch.Tensor]:
    return {"policy.a": torch.ones(40), "policy.b": torch.arange(6, dtype=torch.bfloat16)}


def save(folder: Path, **more: Any) -> Path:
    dcp.save({"state_dict": weights(), "optimizer_0": {"lr": 0.1, "betas": (0.9, 0.99), **more}}, checkpoint_id=folder)
    torch.save({"policy_settings": asdict(policy_settings())}, folder / "meta.pt")
    return folder


def load(folder: Path, **more: Any) -> dict[str, Any]:
    state = {"state_dict": {name: torch.zeros_like(value) for name, value in weights().items()}}
    state["optimizer_0"] = {"lr": 0.0, "betas": (0.0, 0.0), **more}
    with data_only():
        dcp.load(state, checkpoint_id=folder)
    return state


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "s.ckpt")
    assert check_shards(folder) is None
    state = load(folder)
    assert (state["optimizer_0"]["lr"], state["optimizer_0"]["betas"]) == (0.1, (0.9, 0.99))
    assert all(torch.equal(state["state_dict"][name], value) for name, value in weights().items())
    assert torch.equal(read_weights(str(folder))["b"], weights()["policy.b"])


def test_code_in_the_table_does_not_run(tmp_path: Path) -> None:
    folder, marker = save(tmp_path / "s.ckpt"), tmp_path / "marker"
    table = read_table(folder)
    table.planner_data = Marks(marker)
    (folder / METADATA).write_bytes(pickle.dumps(table))
    with pytest.raises(pickle.UnpicklingError, match="which has no place in a checkpoint"):
        read_table(folder)
    with pytest.raises(ConfigurationError, match=r"policy\.path: cannot read the .*no place in a checkpoint"):
        read_weights(str(folder))
    with pytest.raises(dcp.CheckpointException, match="no place in a checkpoint"):
        load(folder)
    assert "no place in a checkpoint" in str(check_shards(folder))
    assert not marker.exists()


def test_code_among_the_values_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = save(tmp_path / "s.ckpt", extra=Marks(marker))
    with pytest.raises(dcp.CheckpointException, match="Weights only load failed"):
        load(folder, extra=None)
    assert not marker.exists()
    with pytest.MonkeyPatch.context() as patch:  # torch's own reader runs it
        patch.setattr("tests.storage.test_shards.data_only", lambda: __import__("contextlib").nullcontext())
        load(folder, extra=None)
    assert marker.exists()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_lacks_or_ends_early_is_noticed(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "s.ckpt")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    if name != "meta.pt":  # which is looked at as an archive
        assert check_shards(folder) is not None
    (folder / name).write_bytes(content)
    write_list(folder, list_files(folder))
    (folder / name).unlink()
    from app.storage.checkpoints import problem_of

    assert problem_of(folder, resumable=False) is not None


def test_random_damage_of_the_table_ends_in_one_kind_of_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "s.ckpt")
    original = (folder / METADATA).read_bytes()
    for position in range(0, len(original), 3):
        changed = bytearray(original)
        changed[position] ^= 0x55
        (folder / METADATA).write_bytes(changed)
        problem = check_shards(folder)
        assert problem is None or problem.startswith(("is damaged", "lacks"))
