"""Measures all that is compared: ``python -m benchmarks.baselines [--folder FOLDER] [--only NAME …]``.

Writes a file of figures for each entry of :data:`RUNS`, into ``benchmarks/baselines`` where no other folder is given:
do that on a quiet machine alone, and commit what it wrote. One process at a time, on one thread each.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.compare import BASELINES

TINY = ("--shape", "tiny", "--prompts", "8", "--new-tokens", "64", "--iterations", "8", "--strategy", "single")
RUNS: dict[str, tuple[str, ...]] = {
    "trace_scan": ("trace_scan",),
    "logprob_speed": ("logprob_speed",),
    "sampling_speed": ("sampling_speed",),
    "grader_throughput": ("grader_throughput",),
    "engines_transformers": ("engines", "--engines", "transformers"),
    "engines_vllm": ("engines", "--engines", "colocated", "separate"),
    "iteration": ("iteration", *TINY, "--", "--trainer.accelerator", "cpu"),
}
"""Name of the file → benchmark and its options. ``engines_vllm`` needs `make setup-vllm`."""


def main() -> int:
    """Runs them; 1 where one failed, whose output stands above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=BASELINES)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    failed = [name for name in options.only if not _run(name, options.folder / f"{name}.json")]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, output: Path) -> bool:
    benchmark, *rest = RUNS[name]
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", str(output), *rest]
    print(f"{name}: python {' '.join(command[1:])}", flush=True)
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
