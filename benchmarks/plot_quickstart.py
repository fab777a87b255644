"""Draws the learning curves of a finished ``make quickstart`` into a picture.

    .venv/bin/python -m benchmarks.plot_quickstart --folder runs/quickstart --output docs/learning_curve.png

Needs the development tools (``make setup-dev``) for matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from app.quickstart import METHODS, read_scalars, run_name

SMOOTHED = 5  # iterations


def main() -> None:
    """Reads the runs' TensorBoard files and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("docs/learning_curve.png"))
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for method, colour in zip(METHODS, ("tab:gray", "tab:blue"), strict=True):
        folders = sorted(options.folder.glob(run_name(method, 0)[:-1] + "*/"))
        runs = [read_scalars(folder) for folder in folders]
        rewards = torch.tensor([run["reward"] for run in runs]).unfold(1, SMOOTHED, 1).mean(-1)
        steps = torch.arange(rewards.shape[1]) + SMOOTHED
        for row in rewards:
            left.plot(steps, row, color=colour, alpha=0.3, linewidth=0.8)
        left.plot(steps, rewards.mean(0), color=colour, label=f"{method} (mean of {len(runs)} seeds)")
        held_out = torch.tensor([run["eval/heldout/accuracy"] for run in runs])
        right.plot(torch.linspace(0, len(runs[0]["reward"]), held_out.shape[1]), held_out.mean(0), "o-", color=colour)
    left.set(xlabel="iteration", ylabel="share correct", title=f"sampled reward (mean over {SMOOTHED} iterations)")
    right.set(xlabel="iteration", title="held-out problems, greedy")
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1)
    figure.tight_layout()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
