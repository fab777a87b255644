"""How fast checksums are compared before a run goes on: a checkpoint and an export of random weights.

python -m benchmarks.verification --gib 2 --folder /some/disk

The files were just written, so that they come from memory; on a disk that is slower than the figure, its own speed
counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.storage.checksums import check_archive, check_folder, list_files, write_list
from benchmarks.sampling_speed import describe_machine


def main() -> None:
    """Prints a line for each kind of file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verification", description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="size of each kind")
    parser.add_argument("--folder", help="where to write; by default the system's temporary folder")
    options = parser.parse_args()
    count = max(1, round(options.gib * 16))
    tensors = {f"layers.{index}.weight": torch.randn(4096, 4096) for index in range(count)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(describe_machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        checkpoint, export = Path(scratch) / "last.ckpt", Path(scratch) / "hf"
        torch.save({"state_dict": tensors}, checkpoint)
        export.mkdir()
        for index, (name, tensor) in enumerate(tensors.items()):
            save_file({name: tensor}, export / f"model-{index}.safetensors")
        write_list(export, list_files(export))
        for name, check in (
            ("checkpoint", lambda: check_archive(checkpoint)),
            ("export", lambda: check_folder(export)),
        ):
            seconds = _best(check)
            print(f"{name:12}{size / 2**30:6.2f} GiB {seconds:8.2f} s {size / seconds / 2**30:8.2f} GiB/s")


def _best(check: Callable[[], str | None]) -> float:
    """Seconds of the fastest of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        if check() is not None:
            raise RuntimeError("an undamaged file was reported")
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
