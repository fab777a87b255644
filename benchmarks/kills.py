"""Kills −9 of whole runs, at chosen moments and at random: what each left, and whether the run ended as if undisturbed.

python -m benchmarks.kills --output benchmarks/results/kills.json

Fifteen kills of each of four kinds of run, 60 in all: one process, two ranks (``ddp``), an engine in a process of its
own, and one that generates ahead. A run is killed once at each moment of :data:`benchmarks.killing.MOMENTS` and then at
random, is started again each time by the same command (``--ckpt_path last``), and in the end has to equal one that was
left alone bit for bit: exported weights, samples of evaluations, rewards by iteration. Needs vLLM for two of the kinds.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.evaluation.results import versions
from benchmarks.killing import MOMENTS, Kill, KilledRun, as_row, differences
from benchmarks.sampling_speed import describe_machine

TRANSFORMERS = {"class_path": "TransformersEngine"}
SEPARATE = {"class_path": "VLLMEngine", "init_args": {"placement": "separate"}}
KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one process": (TRANSFORMERS, []),
    "two ranks": (TRANSFORMERS, ["--config", "configs/strategy/ddp.yaml", "--trainer.devices", "2"]),
    "separate engine": (SEPARATE, []),
    "ahead": (SEPARATE, ["--rollouts.schedule.generate_ahead", "true"]),
}


def main() -> int:
    """Runs all and writes the report; 1 where something was not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of run")
    parser.add_argument("--kills", type=int, default=15, help="of each kind")
    parser.add_argument("--iterations", type=int, default=60, help="of each run; a kill costs about one")
    parser.add_argument("--seed", type=int, default=1, help="of the order of moments, and of those at random")
    parser.add_argument("--output", type=Path, help="a JSON file, whose other kinds stay; a Markdown table beside it")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "versions": versions(), "seed": options.seed, "kinds": {}}
    if options.output and options.output.exists():
        report["kinds"] = json.loads(options.output.read_text())["kinds"]
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            report["kinds"][kind] = run_kind(kind, Path(folder), options)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=1) + "\n")
            options.output.with_suffix(".md").write_text(table(report))
    print(table(report))
    return 0 if all(is_right(each) for each in report["kinds"].values()) else 1


def run_kind(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The kills of one kind of run, and how it ended."""
    engine, more = KINDS[kind]
    count, numbers = options.kills, random.Random(f"{options.seed} {kind}")
    whole, killed = (
        KilledRun(folder / name, engine, more, iterations=options.iterations) for name in ("whole", "killed")
    )
    started = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - started
    moments = numbers.sample(list(MOMENTS), min(count, len(MOMENTS)))
    kills = []
    for index in range(count):
        kills.append(_kill(killed, moments[index] if index < len(moments) else None, seconds, kind, numbers))
        print(f"{kind}: {kills[-1]}", file=sys.stderr, flush=True)
    killed.finish()
    return {
        "kills": [as_row(kill) for kill in kills],
        "differences": differences(whole.outcome(), killed.outcome()),
        "unfinished_in_the_end": killed.unfinished(),
    }


def _kill(run: KilledRun, moment: str | None, seconds: float, kind: str, numbers: random.Random) -> Kill:
    if moment is None:
        return run.kill_at_random(numbers.uniform(0, 0.4 * seconds))  # so that it is not over
    everywhere = moment in ("start", "rollout", "grading", "update", "evaluation")  # the rest is rank 0's
    return run.kill(moment, rank=numbers.randrange(2) if everywhere and kind == "two ranks" else 0)


def is_right(found: dict[str, Any]) -> bool:
    """Whether each kill fell, left a whole checkpoint, and the run ended as the undisturbed one."""
    kills = all(kill["fell"] and kill["intact"] for kill in found["kills"])
    return kills and not found["differences"] and not found["unfinished_in_the_end"]


def table(report: dict[str, Any]) -> str:
    """A Markdown table: a row for each kind of run."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "kills": lambda each: str(len(each["kills"])),
        "fell where they should": lambda each: str(sum(kill["fell"] for kill in each["kills"])),
        "left a half-written file": lambda each: str(sum(bool(kill["unfinished"]) for kill in each["kills"])),
        "newest checkpoint whole": lambda each: str(sum(kill["intact"] for kill in each["kills"])),
        "last process gone after": lambda each: f"{max(kill['left_s'] for kill in each['kills']):.1f} s",
        "differs in the end in": lambda each: ", ".join(each["differences"]) or "nothing",
        "half-written files in the end": lambda each: str(len(each["unfinished_in_the_end"])),
    }
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for kind, found in report["kinds"].items():
        lines.append(f"| {kind} | " + " | ".join(show(found) for show in columns.values()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
