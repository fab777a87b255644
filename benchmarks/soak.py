"""A long run of small iterations: what a process holds more of in the end than it did once it was warm.

python -m benchmarks.soak --output benchmarks/results/soak.json

2,000 iterations with each engine, with a checkpoint after each 100 and an evaluation after each 500. Every 50
iterations the trainer and its children are looked at: resident memory, open files, threads. The report compares the
last quarter with the second one, and says how many files the run has left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, Trainer

from app.evaluation.results import versions
from benchmarks.killing import ROOT, configuration
from benchmarks.sampling_speed import describe_machine

ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {"class_path": "TransformersEngine"},
    "vLLM colocated": {"class_path": "VLLMEngine", "init_args": {"placement": "colocated"}},
    "vLLM separate": {"class_path": "VLLMEngine", "init_args": {"placement": "separate"}},
}
HELD = {"memory_mib": 5.0, "files": 2.0, "threads": 2.0}
"""What is looked at → by how much its median may grow between the second quarter and the last: in %, or in number."""


class Resources(Callback):
    """Writes a row of what this process and its children hold, every few iterations.

    Args:
        path: of the JSON lines.
        every: iterations.
    """

    def __init__(self, path: str, every: int = 50) -> None:
        self.path, self.every = Path(path), every

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.every == 0:
            row = {"iteration": batch_idx + 1, **held(os.getpid())}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def held(process: int) -> dict[str, float]:
    """Resident memory in MiB, open files and threads of a process and all below it."""
    family = [process, *_below(process)]
    rows = [row for each in family if (row := _held_by(each))]
    return {name: sum(row[name] for row in rows) for name in HELD} | {"processes": float(len(rows))}


def _held_by(process: int) -> dict[str, float]:
    folder = Path("/proc") / str(process)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        files = len(os.listdir(folder / "fd"))
    except OSError:  # it has ended meanwhile
        return {}
    memory = float(status.get("VmRSS", "0 kB").split()[0]) / 1024
    return {"memory_mib": memory, "files": float(files), "threads": float(status["Threads"])}


def _below(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return [each for child in found for each in (child, *_below(child))]


def main() -> int:
    """Runs all and writes the report; 1 where something grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), help="to run with")
    parser.add_argument("--iterations", type=int, default=2000, help="of each run")
    parser.add_argument("--output", type=Path, help="a JSON file, whose other engines stay; a Markdown table beside it")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "versions": versions(), "engines": {}}
    if options.output and options.output.exists():
        report["engines"] = json.loads(options.output.read_text())["engines"]
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            report["engines"][engine] = soak(Path(folder), ENGINES[engine], options.iterations)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=1) + "\n")
            options.output.with_suffix(".md").write_text(table(report))
    print(table(report))
    return 0 if all(is_flat(each["growth"]) for each in report["engines"].values()) else 1


def soak(folder: Path, engine: dict[str, Any], iterations: int) -> dict[str, Any]:
    """One run: its rows, how much each grew, and the files that it left.

    Raises:
        RuntimeError: the run did not end well.
    """
    settings = configuration(folder, engine, iterations)
    settings["rollouts"] |= {"group_size": 2, "sampling": {"max_new_tokens": 8}}
    settings["data"]["init_args"] |= {"prompts_per_iteration": 2}
    settings["checkpoint"] = {"every_n_iterations": 100}
    settings["export"] = {"folder": str(folder / "hf")}
    rows = folder / "rows.jsonl"
    recorder = {"class_path": "benchmarks.soak.Resources", "init_args": {"path": str(rows)}}
    settings["trainer"] |= {"val_check_interval": 500, "callbacks": [recorder], "enable_progress_bar": False}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "main.py", "fit", "--config", str(folder / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    left = sorted(path.relative_to(folder).parts[0] for path in folder.glob("*"))
    return {"rows": found, "growth": growth(found), "left": left}


def growth(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Medians of the second quarter of ``rows`` and of the last one."""
    quarter = max(1, len(rows) // 4)
    parts = {"second_quarter": rows[quarter : 2 * quarter], "last_quarter": rows[-quarter:]}
    return {name: {part: statistics.median(row[name] for row in of) for part, of in parts.items()} for name in HELD}


def is_flat(grown: dict[str, dict[str, float]]) -> bool:
    """Whether nothing grew by more than :data:`HELD` says."""
    for name, allowed in HELD.items():
        before, after = grown[name]["second_quarter"], grown[name]["last_quarter"]
        if after > (before * (1 + allowed / 100) if name == "memory_mib" else before + allowed):
            return False
    return True


def table(report: dict[str, Any]) -> str:
    """A Markdown table: a row for each engine; the second quarter's median → the last one's."""
    lines = [
        "| engine | iterations | memory, MiB | open files | threads | left in its folder |",
        "|---|---|---|---|---|---|",
    ]
    for engine, found in report["engines"].items():
        grown = found["growth"]
        cells = [f"{grown[name]['second_quarter']:,.0f} → {grown[name]['last_quarter']:,.0f}" for name in HELD]
        last = int(found["rows"][-1]["iteration"])
        lines.append(f"| {engine} | {last:,} | " + " | ".join(cells) + f" | {', '.join(found['left'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
