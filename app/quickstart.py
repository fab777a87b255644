"""``make quickstart``: warm start, then GRPO beside GRPO-λ over a few seeds, and a table of what was learned.

Every step is a command that the user could type; each is printed before it runs.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.console import program

CONFIGS = Path("configs/quickstart")
METHODS = {"GRPO": ("grpo_lambda.yaml", "grpo.yaml"), "GRPO-λ": ("grpo_lambda.yaml",)}
EDGE = 5  # iterations averaged at either end of the reward curve


@dataclass(frozen=True)
class Outcome:
    """What one run showed. All are shares of problems solved.

    Attributes:
        method: a key of :data:`METHODS`.
        rewards: mean sampled reward of each iteration; the reward is 1 for a correct answer, else 0.
        accuracies: greedy held-out accuracy, the first before any update.
    """

    method: str
    rewards: list[float]
    accuracies: list[float]


def main() -> int:
    """Runs the whole and prints the table; 1 where a step failed."""
    options = _options()
    started = time.monotonic()
    folder: Path = options.folder
    warm_start = folder / "warm-start" / "hf"
    folder.mkdir(parents=True, exist_ok=True)
    root = ["--trainer.default_root_dir", str(folder)]
    if (warm_start / "config.json").is_file():
        print(f"warm start: found in {warm_start}, used as it is")
    else:
        extra = [*root, "--export.folder", str(warm_start)]
        _step("warm-start", ("warm_start.yaml",), extra, folder, threads=os.cpu_count() or 1)
    runs = [(method, seed) for seed in range(1, options.seeds + 1) for method in METHODS]
    # One-thread processes side by side beat one process with all threads at this size.
    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        shared = [*root, "--model.policy.path", str(warm_start), "--data.iterations", str(options.iterations)]
        outcomes = list(pool.map(lambda run: _learn(run[0], run[1], shared, folder), runs))
    print(f"\n{format_outcomes(outcomes)}\n")
    print(f"{time.monotonic() - started:.0f} s in all. Curves: {program('tensorboard')} --logdir {folder}")
    return 0


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """A row a method: means over its seeds, with the range of the final accuracies."""
    rows = [["", "seeds", "reward, first 5", "last 5", "mean", "held-out before", "after", "range"]]
    for method in METHODS:
        own = [outcome for outcome in outcomes if outcome.method == method]
        after = [outcome.accuracies[-1] for outcome in own]
        values = [
            statistics.fmean(statistics.fmean(outcome.rewards[:EDGE]) for outcome in own),
            statistics.fmean(statistics.fmean(outcome.rewards[-EDGE:]) for outcome in own),
            statistics.fmean(statistics.fmean(outcome.rewards) for outcome in own),
            statistics.fmean(outcome.accuracies[0] for outcome in own),
            statistics.fmean(after),
        ]
        spread = f"{min(after):.3f} – {max(after):.3f}"
        rows.append([method, str(len(own)), *(f"{value:.3f}" for value in values), spread])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [
            *lines,
            *_paired(outcomes),
            "",
            "reward: share of sampled completions that are correct; held-out: greedy, on problems never trained on.",
            "The warm start leaves half of the verbs to a coin toss, so the room to improve is there by design.",
        ]
    )


def _paired(outcomes: Sequence[Outcome]) -> list[str]:
    """How far the second method is ahead of the first on the same seeds, where there are several."""
    base, other = METHODS
    means = {
        method: [statistics.fmean(outcome.rewards) for outcome in outcomes if outcome.method == method]
        for method in METHODS
    }
    gains = [after - before for before, after in zip(means[base], means[other], strict=True)]
    if len(gains) < 2:
        return []
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return [
        f"{other} - {base}, seed by seed: mean reward {statistics.fmean(gains):+.3f} (standard error {error:.3f}), "
        f"ahead on {sum(gain > 0 for gain in gains)} of {len(gains)}"
    ]


def run_name(method: str, seed: int) -> str:
    """The folder of a run, below the quickstart's."""
    return f"{method.lower().replace('λ', 'lambda')}-seed{seed}"


def read_scalars(folder: Path) -> Mapping[str, list[float]]:
    """All scalar curves of the newest TensorBoard run below ``folder``, by tag, in the order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    newest = max(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    events = EventAccumulator(str(newest), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.quickstart", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where everything goes")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method")
    parser.add_argument("--iterations", type=int, default=50, help="of each run")
    return parser.parse_args()


def _learn(method: str, seed: int, shared: list[str], folder: Path) -> Outcome:
    name = run_name(method, seed)
    _step(name, METHODS[method], [*shared, "--seed_everything", str(seed), "--name", name], folder, threads=1)
    scalars = read_scalars(folder / name)
    return Outcome(method, scalars["reward"], scalars["eval/heldout/accuracy"])


def _step(name: str, configs: Sequence[str], extra: list[str], folder: Path, threads: int) -> None:
    """One training command, its output in ``<folder>/<name>.log``; ends the program where it fails."""
    stacked = [word for config in configs for word in ("--config", str(CONFIGS / config))]
    command = [sys.executable, "main.py", "fit", *stacked, *extra]
    log = folder / f"{name}.log"
    print(f"{name}: {shlex.join(command)} > {log}", flush=True)
    started = time.monotonic()
    with log.open("w") as output:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise SystemExit(f"{name} failed with exit code {code}; the end of {log}:\n{_tail(log)}")
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(main())
