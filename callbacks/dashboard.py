"""The page of a run: its layout, its settings, distributions, and curves that stay whole when the run goes on."""

import resource
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from app.algorithm.traces import STYLES, accumulate
from app.errors import require
from callbacks.dashboard_layout import PARTS, STACK, layout_summary, rl_layout, sft_layout
from callbacks.evaluation_timing import iterations_done
from callbacks.last_update import last_update
from callbacks.loggers import log_histogram, log_settings
from callbacks.run_settings import FIRST, run_settings
from modules.iteration_metrics import note_metrics

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule

GIB = 2**30
AXES = ("by_tokens", "by_milliseconds")
Point = list[float]
"""Tokens generated until then, seconds of training until then, and a value."""


class Dashboard(Callback):
    """Lays out TensorBoard's Custom Scalars page, fills its HParams and Histograms tabs, and keeps each curve in one
    piece when a run goes on; a run without this key has it too. W&B, MLflow and CSV files get what they can hold.

    Reward and accuracies are also drawn over tokens and over milliseconds of training, in TensorBoard alone:
    ``by_tokens/…`` and ``by_milliseconds/…``.

    Args:
        histograms_every_n_iterations: how often distributions are kept: rewards, advantages, lengths, token entropies,
            log-ratios and z of each style, of rank 0's completions; null for never.
    """

    def __init__(self, histograms_every_n_iterations: int | None = 10) -> None:
        every = histograms_every_n_iterations
        rule = "must be null or at least 1"
        require(every is None or every >= 1, rule, every, "dashboard.histograms_every_n_iterations")
        self.histograms_every_n_iterations = every
        self._points: dict[str, list[Point]] = defaultdict(list)
        self._tokens = self._seconds = 0.0
        self._drawn: dict[str, int] = {}
        self._evaluation: dict[str, Any] = {"step": -1, "scores": {}}

    def state_dict(self) -> dict[str, Any]:
        held = {"points": dict(self._points), "tokens": self._tokens, "seconds": self._seconds}
        return held | {"evaluation": self._evaluation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._points = defaultdict(list, state_dict["points"])
        self._tokens, self._seconds = state_dict["tokens"], state_dict["seconds"]
        self._evaluation = state_dict["evaluation"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        done, benchmarks = iterations_done(trainer), trainer.datamodule.benchmark_names
        for logger in _tensorboards(trainer):
            _lay_out(logger, pl_module, benchmarks)
            if done:
                _begin_again(logger, done)
        settings, metrics = run_settings(trainer, pl_module), metrics_of_interest(pl_module, benchmarks)
        log_settings(trainer.loggers, settings, metrics, FIRST)
        if done:
            self._draw_again(trainer, done)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if getattr(pl_module, "experience", None) is None:
            return  # the supervised stage
        metrics = trainer.callback_metrics
        shares = time_shares({name: float(metrics.get(f"speed/time/{name}", 0.0)) for name in ("iteration", *PARTS)})
        note_metrics(trainer, shares | {"speed/memory_gib": peak_memory(pl_module.device)})
        if not trainer.is_global_zero:
            return
        self._tokens = float(metrics["speed/tokens/total"])
        self._seconds += float(metrics["speed/time/iteration"])
        if "reward" in metrics:
            self._add(trainer, "reward", float(metrics["reward"]))
        every = self.histograms_every_n_iterations
        if every and (batch_idx + 1) % every == 0:
            for name, values in distributions(pl_module).items():
                log_histogram(trainer.loggers, name, values.numpy(), batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not hasattr(pl_module, "experience"):
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        self._evaluation = {"step": iterations_done(trainer), "scores": scores}
        for name, value in scores.items():
            if name.endswith("/accuracy"):
                self._add(trainer, name, value)

    def _draw_again(self, trainer: Trainer, done: int) -> None:
        """What :func:`_begin_again` made readers forget, and what this process will not log once more: an evaluation
        after iteration ``done`` that the checkpoint has already seen, and curves over other axes."""
        for logger in _tensorboards(trainer) if self._evaluation["step"] == done else ():
            logger.log_metrics(self._evaluation["scores"], done)
        for name, points in self._points.items():
            for point in points:
                self._draw(trainer, name, point, beyond=done)

    def _add(self, trainer: Trainer, name: str, value: float) -> None:
        point = [self._tokens, self._seconds, value]
        self._points[name].append(point)
        self._draw(trainer, name, point)

    def _draw(self, trainer: Trainer, name: str, point: Point, beyond: int = 0) -> None:
        """Draws a point where its step is at least ``beyond``, for a run that begins again has lost those from there
        on. Steps are whole: the first point of each is drawn."""
        # Milliseconds, for each iteration takes one at least: what follows a checkpoint lies beyond its iterations.
        for axis, step in zip(AXES, (int(point[0]), int(1000 * point[1])), strict=True):
            tag = f"{axis}/{name}"
            if step > self._drawn.get(tag, -1):
                self._drawn[tag] = step
                for logger in _tensorboards(trainer) if step >= beyond else ():
                    logger.experiment.add_scalar(tag, point[-1], step)


def metrics_of_interest(module: LightningModule, benchmarks: list[str]) -> list[str]:
    """The curves by which runs are sorted."""
    learned = ["final/reward", "reward", "entropy", "completions/mean_length"]
    return [
        *(f"eval/{name}/accuracy" for name in benchmarks),
        *(learned if hasattr(module, "experience") else ["loss"]),
    ]


def distributions(module: "GRPOLambdaModule") -> dict[str, torch.Tensor]:
    """Name → finite values of this rank's last iteration, [N] on the CPU. Ratios are those that the last update saw."""
    experience, log_ratio, advantages = last_update(module)
    mask = experience.tokens.completion_mask.bool()
    updated = experience.loss_mask.bool() & ~log_ratio.isnan()
    known = log_ratio.nan_to_num() * updated
    found = {
        "learning/rewards": experience.rewards,
        "learning/advantages": advantages,
        "rollouts/completion_lengths": mask.sum(1),
        "policy/token_entropies": experience.entropy[mask],
        "policy/log_ratios": known[updated],
    }
    q = module.objective.q
    found |= {f"traces/{style}/z": accumulate(known, updated, q, style)[updated] for style in STYLES}
    values = {name: each.detach().flatten().float().cpu() for name, each in found.items()}
    return {name: each[each.isfinite()] for name, each in values.items()}


def time_shares(seconds: dict[str, float]) -> dict[str, float]:
    """The curves of :data:`STACK`: shares of an iteration's time that its parts took, each added to those before it.

    Args:
        seconds: of the parts, and "iteration", of the whole. Parts that overlap, such as a rollout that was generated
            ahead, may add up to more; shares are then those of their sum.
    """
    parts = [seconds[name] for name in PARTS[:-1]]
    rest = max(0.0, seconds["iteration"] - sum(parts))
    total = sum(parts) + rest
    ends = torch.tensor([0.0, *parts, rest], dtype=torch.float64).cumsum(0) / max(total, 1e-9)
    return dict(zip(STACK, ends.tolist(), strict=True))


def peak_memory(device: torch.device) -> float:
    """GiB: the most that tensors held on the GPU so far, or without one the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _lay_out(logger: TensorBoardLogger, module: Any, benchmarks: list[str]) -> None:
    rl = hasattr(module, "experience")
    layout = rl_layout(benchmarks, module.objective) if rl else sft_layout(benchmarks)
    logger.experiment.file_writer.add_summary(layout_summary(layout))


def _begin_again(logger: TensorBoardLogger, done: int) -> None:
    """Tells readers to forget what was logged from step ``done`` on: an earlier process came further than its last
    checkpoint, and this one logs these iterations once more."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    restart = Event(step=done, session_log=SessionLog(status=SessionLog.START))
    logger.experiment.file_writer.add_event(restart)
