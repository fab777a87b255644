"""What costly switches cost in time and memory: ``python -m benchmarks.switch_costs [--output docs/switch_costs.md]``.

Each switch is the real ``fit`` of :mod:`benchmarks.iteration` with and without it, in processes of their own that take
turns, on policies with random weights of the quickstart's size and of about 20 million parameters. What is printed are
medians over rounds of the ratio of the two: of the training phase, of the evaluation under π_old and the reference, of
generation and of the whole iteration; and the difference of peak memory (of the process; on a GPU, of the device).

    python -m benchmarks.switch_costs --sizes 20m --switches lora gradient_checkpointing --rounds 5
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.rewards.reward import RewardSample
from benchmarks.iteration import even_words
from benchmarks.iteration import main as iteration
from benchmarks.sampling_speed import describe_machine

SIZES: dict[str, dict[str, int]] = {
    "quickstart": {"prompts": 16, "group": 8, "prompt-tokens": 20, "new-tokens": 40, "micro-batch": 64},
    "20m": {"prompts": 4, "group": 4, "prompt-tokens": 32, "new-tokens": 64, "micro-batch": 4},
}
"""A shape of :mod:`benchmarks.iteration` → the work of an iteration."""

COMMON = [
    *("--trainer.precision", "32-true", "--model.policy.gradient_checkpointing", "false"),
    *("--model.updates.mini_batches", "1", "--model.objective.application", "none"),
]
"""Every switch is off."""

TIED = [
    "--rollouts.rewards",
    '[{"class_path": "ImportedReward", "init_args": {"path": "benchmarks.switch_costs:half_tied"}}]',
]


@dataclass(frozen=True)
class Switch:
    """One comparison.

    Attributes:
        options: of ``fit``, with the switch on.
        base: further options of both runs.
        strategies: of the run without and the run with it, files of ``configs/strategy``.
        on_gpus: whether it does nothing without one.
        micro_batch_parts: into how many smaller micro-batches each one is cut, with the switch on.
    """

    options: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    strategies: tuple[str, str] = ("single", "single")
    on_gpus: bool = False
    micro_batch_parts: int = 1


SWITCHES: dict[str, Switch] = {
    "gradient_checkpointing": Switch(("--model.policy.gradient_checkpointing", "true")),
    "beta": Switch(("--model.objective.beta", "0.04")),
    "updates_2": Switch(("--model.updates.per_rollout", "2")),
    "mini_batches_2": Switch(("--model.updates.mini_batches", "2")),
    "micro_batch_quarter": Switch(micro_batch_parts=4),
    "trace_recent": Switch(("--model.objective.application", "trace", "--model.objective.style", "recent")),
    "trace_both": Switch(("--model.objective.application", "trace", "--model.objective.style", "both")),
    "trace_logging": Switch(("--traces", "{}")),
    "correction": Switch(("--rollouts.mismatch.correction", "{}")),
    "dynamic_sampling": Switch(("--rollouts.dynamic_sampling", "{max_extra_rollouts: 1}"), base=tuple(TIED)),
    "lora": Switch(("--model.policy.lora", "{}")),
    "adamw8bit": Switch(("--model.optimizer.name", "adamw8bit")),
    "fsdp2_offload": Switch(strategies=("fsdp2", "fsdp2_offload"), on_gpus=True),
    "reference_offload": Switch(
        ("--model.reference_offload", "true"), base=("--model.objective.beta", "0.04"), on_gpus=True
    ),
}
COLUMNS = ("time/train", "time/log_probs", "time/generate", "time/iteration")


def half_tied(samples: Sequence[RewardSample]) -> list[float | None]:
    """:func:`even_words`, and the same for all completions of every other problem."""
    tied = [sample.problem.problem.split()[0][-1] in "02468" for sample in samples]
    return [1.0 if same else share for same, share in zip(tied, even_words(samples), strict=True)]


def main() -> int:
    """Prints a table a size, and writes them where asked to."""
    options = _parse()
    tables = []
    for size in options.sizes:
        chosen = {name: SWITCHES[name] for name in options.switches if _runs_here(SWITCHES[name])}
        rounds = [
            {name: _compare(size, switch, options) for name, switch in chosen.items()} for _ in range(options.rounds)
        ]
        tables.append(_table(size, {name: [each[name] for each in rounds] for name in chosen}))
        print(tables[-1], flush=True)
    if options.output:
        Path(options.output).write_text(_page(tables, options))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--switches", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3, help="of each run, the first of which warms up")
    parser.add_argument("--folder", default="runs/switch-costs", help="for the policies' files and the runs")
    parser.add_argument("--output", help="a Markdown file for the tables")
    return parser.parse_args()


def _runs_here(switch: Switch) -> bool:
    return torch.cuda.device_count() > 0 or not switch.on_gpus  # which makes no CUDA context: children are forked


def _compare(size: str, switch: Switch, options: argparse.Namespace) -> dict[str, float]:
    """Ratio of each time, and difference of memory in MiB, of one pair of runs."""
    work, common = SIZES[size], [*COMMON, *switch.base]
    smaller = work | {"micro-batch": work["micro-batch"] // switch.micro_batch_parts}
    without = _run(size, switch.strategies[0], work, common, options)
    with_it = _run(size, switch.strategies[1], smaller, [*common, *switch.options], options)
    ratios = {name: with_it[name] / without[name] for name in COLUMNS}
    return ratios | {"memory": (with_it["memory"] - without["memory"]) * 1024}


def _run(
    size: str, strategy: str, work: dict[str, int], fit_options: list[str], options: argparse.Namespace
) -> dict[str, float]:
    """Medians of the times and the peak memory in GiB of one run, in a forked process."""
    output = Path(options.folder) / "figures.json"
    log = output.with_suffix(".log")
    output.unlink(missing_ok=True)
    own = {"shape": size, "strategy": strategy, "folder": options.folder, "json": output}
    arguments = command(work | own | {"iterations": options.iterations}, fit_options)
    child = multiprocessing.get_context("fork").Process(target=_quietly, args=(arguments, log))
    child.start()
    child.join()
    if not output.exists():
        raise SystemExit(f"a run failed; the end of {log}:\n{_tail(log)}")
    found = json.loads(output.read_text())
    return found["median"] | {"memory": found["median"].get("memory/training", found["host_peak_gib"])}


def command(own: Mapping[str, Any], fit_options: Sequence[str]) -> list[str]:
    """The command line of :mod:`benchmarks.iteration`."""
    return [*(word for name, value in own.items() for word in (f"--{name}", str(value))), "--", *fit_options]


def _quietly(arguments: list[str], log: Path) -> None:
    """The benchmark of an iteration, its output in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with contextlib.suppress(SystemExit):
            sys.exit(iteration(arguments))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _table(size: str, found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row a switch."""
    lines = [
        f"{size}: with the switch over without it",
        "",
        "| switch | training | π_old and reference | generation | iteration | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in found.items():
        median: dict[str, Any] = {column: statistics.median(each[column] for each in rounds) for column in rounds[0]}
        times = " | ".join(f"{median[column]:.2f}" for column in COLUMNS)
        lines.append(f"| `{name}` | {times} | {median['memory']:+.0f} |")
    return "\n".join([*lines, ""])


def _page(tables: Sequence[str], options: argparse.Namespace) -> str:
    return "\n".join(
        [
            "# Costs of the switches, measured",
            "",
            f"`python -m benchmarks.switch_costs --rounds {options.rounds}` on {describe_machine()}.",
            "",
            *tables,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
