"""The pictures of a report: learning curves, and differences with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from app.report.comparison import PRIMARY, Difference, Key
from app.report.plan import GROUPS, Plan
from app.report.runs import runs_of
from app.report.scheduling import State

SMOOTHED = 5
"""Iterations of a curve that are averaged."""


def draw(state: State, differences: Mapping[Key, Difference], folder: Path) -> list[Path]:
    """Writes ``curves.png`` and ``differences.png``, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"curves.png": _curves(state), "differences.png": _forest(state.plan, differences)}
    for name, picture in pictures.items():
        picture.tight_layout()
        picture.savefig(folder / name, dpi=90, metadata={"Software": None})
    return [folder / name for name in pictures]


def _curves(state: State) -> Figure:
    """A panel a task: the train reward of each main method, mean over its finished runs."""
    tasks = list(state.plan.tasks)
    figure = Figure(figsize=(5.2 * len(tasks), 3.6))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for method in (name for name, each in state.plan.methods.items() if each.group == "main"):
            rewards = _rewards(state, task, method)
            if rewards:
                smooth = smoothed(rewards)
                steps = range(len(rewards[0]) - len(smooth) + 1, len(rewards[0]) + 1)
                axis.plot(steps, smooth, label=method, linewidth=1.4)
        axis.set(title=task, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel=f"train reward (mean over {SMOOTHED} iterations)")
    if axes[0][-1].lines:
        axes[0][-1].legend(frameon=False, fontsize=8)
    return figure


def _rewards(state: State, task: str, method: str) -> list[Sequence[float]]:
    runs = [run for run in runs_of(state.plan) if (run.stage, run.task, run.method) == ("run", task, method)]
    return [state.finished[run.name]["curves"]["reward"] for run in runs if run.name in state.finished]


def smoothed(rewards: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several curves of equal length, averaged over a moving window of :data:`SMOOTHED` points."""
    mean = [sum(column) / len(column) for column in zip(*rewards, strict=True)]
    window = min(SMOOTHED, len(mean))
    return [sum(mean[end - window : end]) / window for end in range(window, len(mean) + 1)]


def _forest(plan: Plan, differences: Mapping[Key, Difference]) -> Figure:
    """A line a comparison: the absolute difference of the area with its interval."""
    order = [method for group in GROUPS for method in plan.group(group)]
    tasks = list(plan.tasks)
    figure = Figure(figsize=(5.2 * len(tasks), 0.32 * len(order) + 1.2))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for row, method in enumerate(reversed(order)):
            found = differences.get((task, method, PRIMARY))
            if found is not None:
                each = found.absolute
                colour = "tab:blue" if plan.methods[method].group == "main" else "tab:gray"
                axis.plot([each.low, each.high], [row, row], color=colour)
                axis.plot([each.value], [row], "o", color=colour, markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=task, xlabel="difference of the area, with its 95 % interval")
        axis.grid(alpha=0.3, axis="x")
    labels = [f"{method} − {plan.methods[method].against}" for method in reversed(order)]
    axes[0][0].set_yticks(range(len(order)), labels, fontsize=8)
    return figure
