"""Where a run goes on from: files that are damaged, foreign or incomplete, and ``--ckpt_path last``."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from app.cli.starting_point import continued_run, places_of, starting_point
from app.errors import ConfigurationError
from callbacks import IterationCheckpoint
from tests.cli.small_run import small_run
from tests.command_line import run
from tests.running import fit, make_data, make_module, make_rollouts
from tests.storage.code import Marks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of iterations 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("run")
    keep = IterationCheckpoint(1, keep=9, folder=str(folder / "c"))
    fit(folder, make_module(), make_data(iterations=3), [make_rollouts(), keep])
    return folder / "c"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "c", symlinks=True)


def flip(path: Path, offset: int = 0) -> None:
    """One bit of the largest tensor, in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + offset] ^= 4
    path.write_bytes(data)


def change(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        edit(content)
        torch.save(content, path)

    return changed


def without_a_state(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"].popitem()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (flip, r"is damaged: its record data/\d+ is not what was written"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "ends early or is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("a letter"), "is no checkpoint"),
    "another dictionary": (lambda path: torch.save({"weights": torch.ones(2)}, path), "is no checkpoint of this proj"),
    "without loops": (change(lambda content: content.pop("loops")), "lacks loops, without which a run cannot go on"),
    "without optimiser": (change(lambda content: content.pop("optimizer_states")), "lacks optimizer_states"),
    "without a running mean": (change(without_a_state), "lacks running means of the optimiser"),
    "without rollouts": (change(lambda content: content.pop("rollouts")), "lacks rollouts"),
    "without schedule": (change(lambda content: content.pop("lr_schedulers")), "lacks lr_schedulers"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_with_the_newest_intact_one_beside_it(folder: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(folder / "iteration-000003.ckpt")
    damage(folder / "iteration-000002.ckpt")
    instead = rf".*; the newest intact one beside it is {folder}/iteration-000001\.ckpt$"
    with pytest.raises(ConfigurationError, match=rf"^ckpt_path: .*000003\.ckpt {expected}{instead}"):
        starting_point(str(folder / "iteration-000003.ckpt"), [], fit=True, verify=True)
    with pytest.raises(ConfigurationError, match=rf"last\.ckpt \(iteration-000003\.ckpt\) {expected}{instead}"):
        starting_point(str(folder / "last.ckpt"), [], fit=True, verify=True)
    if "bit" in name:
        assert starting_point(str(folder / "last.ckpt"), [], fit=True, verify=False) is not None
        starting_point(str(folder / "iteration-000001.ckpt"), [], fit=True, verify=True)


@pytest.mark.parametrize("name", DAMAGES)
def test_last_takes_the_newest_intact_one_and_says_what_it_passed_over(folder: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(folder / "iteration-000003.ckpt")
    with pytest.warns(UserWarning, match=rf"--ckpt_path last: .*000003\.ckpt is passed over, for it {expected}"):
        found = starting_point("last", [folder], fit=True, verify=True)
    assert found == str(folder / "iteration-000002.ckpt")


@pytest.mark.parametrize("name", [name for name in DAMAGES if name.startswith("without")])
def test_weights_alone_are_enough_to_be_evaluated(folder: Path, name: str) -> None:
    DAMAGES[name][0](folder / "iteration-000003.ckpt")
    assert starting_point(str(folder / "last.ckpt"), [], fit=False, verify=True) == str(folder / "last.ckpt")


def test_code_in_a_checkpoint_does_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = torch.load(folder / "iteration-000003.ckpt", weights_only=True)
    torch.save({**content, "extra": Marks(marker)}, folder / "iteration-000003.ckpt")
    with pytest.raises(ConfigurationError, match="holds more than data, which is not run"):
        starting_point(str(folder / "last.ckpt"), [], fit=True, verify=True)
    with pytest.raises(ConfigurationError, match="holds more than data, which is not run"):
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts()], folder / "last.ckpt")
    assert not marker.exists()


def test_last_begins_where_there_is_none(tmp_path: Path) -> None:
    places = places_of(tmp_path, "new", None)
    assert starting_point("last", places, fit=True, verify=True) is None
    with pytest.raises(ConfigurationError, match="ckpt_path: last: there is no checkpoint of this name yet"):
        starting_point("last", places, fit=False, verify=True)


def test_last_does_not_begin_anew_where_all_are_damaged(folder: Path) -> None:
    for path in folder.glob("iteration-*.ckpt"):
        flip(path)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(ConfigurationError, match=r"none of the 3 checkpoints is intact; .* leave ckpt_path out"),
    ):
        starting_point("last", [folder], fit=True, verify=True)


def test_last_looks_in_the_newest_run_first_and_in_numbers_not_letters(folder: Path, tmp_path: Path) -> None:
    for version, iteration in ((2, 3), (10, 1)):
        checkpoints = tmp_path / "name" / f"version_{version}" / "checkpoints"
        checkpoints.mkdir(parents=True)
        shutil.copy(folder / f"iteration-00000{iteration}.ckpt", checkpoints)
    (tmp_path / "name" / "version_11").mkdir()  # killed before its first checkpoint
    found = starting_point("last", places_of(tmp_path, "name", None), fit=True, verify=True)
    assert found == str(tmp_path / "name/version_10/checkpoints/iteration-000001.ckpt")


def test_a_run_goes_on_in_its_own_folder_from_its_newest_checkpoint_alone(tmp_path: Path) -> None:
    runs = tmp_path / "name"
    checkpoints = runs / "version_3" / "checkpoints"
    checkpoints.mkdir(parents=True)
    older, newest = (checkpoints / f"iteration-{number:06d}.ckpt" for number in (9, 10))
    for path in (older, newest, checkpoints / "best.ckpt"):
        path.touch()
    (checkpoints / "last.ckpt").symlink_to(newest.name)
    for path in (newest, checkpoints / "last.ckpt"):
        assert continued_run(path, runs, meant=False) == 3
    for path in (older, checkpoints / "best.ckpt"):
        assert continued_run(path, runs, meant=False) is None
    assert continued_run(older, runs, meant=True) == 3  # the newer one is damaged
    assert continued_run(newest, tmp_path / "another", meant=True) is None
    assert continued_run(tmp_path / "elsewhere" / "iteration-000001.ckpt", runs, meant=True) is None


def test_rank_zero_alone_looks_for_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others hear of it where the run is restored: see tests/distributed/test_stopping.py."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert starting_point("last", [folder], fit=True, verify=True) is None


def test_what_verify_false_lets_pass_still_ends_in_one_error(folder: Path, tmp_path: Path) -> None:
    path = folder / "iteration-000003.ckpt"
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    data[start + 42] ^= 0x7F  # where the last record begins
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="ckpt_path: "):
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts()], path)


def test_the_command_line_refuses_a_damaged_file_in_one_line(folder: Path, tmp_path: Path) -> None:
    flip(folder / "iteration-000003.ckpt")
    arguments = small_run(tmp_path, {"class_path": "TransformersEngine"})
    done = run(*arguments, "--ckpt_path", folder / "last.ckpt")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(said) == 1
    assert said[0].startswith(f"error: ckpt_path: {folder}/last.ckpt (iteration-000003.ckpt) is damaged: its record")
    assert said[0].endswith("000002.ckpt (in command line)")
    assert not (tmp_path / "run").exists()
