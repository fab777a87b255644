"""Real disks that are full: small ones in memory, where this machine lets us mount them."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callbacks import HFExport, IterationCheckpoint
from tests.running import fit, make_data, make_module, make_rollouts

Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a disk of the given size, such as "100k"."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"there is no mount: {error}")
        if done.returncode:
            pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_an_export_to_a_full_disk_leaves_the_former_one(disk: Disk) -> None:
    folder = disk("200k")  # room for one export and no more
    fit(folder.parent, make_module(), make_data(iterations=1), [make_rollouts(), HFExport(str(folder / "hf"))])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before
    with pytest.raises(OSError, match="No space left on device"):
        fit(folder.parent, make_module(), make_data(iterations=2), [make_rollouts(), HFExport(str(folder / "hf"))])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_checkpoint_on_a_full_disk_leaves_the_former_one(disk: Disk) -> None:
    folder = disk("560k")
    keep = IterationCheckpoint(1, keep=1, folder=str(folder))
    with pytest.raises(OSError, match="No space left on device"):
        fit(folder.parent, make_module(), make_data(iterations=3), [make_rollouts(), keep])
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["iteration-000001.ckpt", "last.ckpt"]
