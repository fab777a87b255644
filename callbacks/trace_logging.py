"""What the eligibility traces do to the tokens of this run, for the style in use and for the others beside it."""

from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer

from app.algorithm.objective import ObjectiveSettings
from app.algorithm.traces import STYLES, accumulate, weights
from app.errors import ConfigurationError
from app.rollout.metric_sums import MetricSums

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule

QUARTERS = 4


class TraceLogging(Callback):
    """Logs under ``traces/<style>/``, at the run's q = γ·λ:

    - ``effective_horizon``: Σ_k tr(t, k) at a row's last token: how many tokens' worth of past it holds;
    - ``weight/quarter<n>``: mean forward weight W over the n-th quarter of the rows' own lengths;
    - ``z_std``, ``z_max``: root mean square and largest size of the accumulated log-ratio, as the last update saw it;
    - ``clip_fraction/all`` and ``clip_fraction/quarter<n>``: share of tokens whose ratio leaves the clip range.

    ``traces/none/…`` gives the last two for the plain token ratio.

    Args:
        every_n_iterations: how often.
    """

    def __init__(self, every_n_iterations: int = 1) -> None:
        if every_n_iterations < 1:
            raise ConfigurationError(f"must be at least 1, got {every_n_iterations}", key="traces.every_n_iterations")
        self.every_n_iterations = every_n_iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every_n_iterations or pl_module.last_log_ratio is None:
            return
        experience, sums = pl_module.experience, MetricSums()
        assert experience is not None
        record_traces(sums, pl_module.last_log_ratio, experience.loss_mask, pl_module.objective)
        pl_module.log_dict(sums.reduce(pl_module.gather_objects), rank_zero_only=True)


def record_traces(sums: MetricSums, log_ratio: torch.Tensor, mask: torch.Tensor, settings: ObjectiveSettings) -> None:
    """Adds the metrics of :class:`TraceLogging` to ``sums``.

    Args:
        log_ratio: [B, T] log π_θ − log π_old; NaN on rows that took no part in the update.
        mask: [B, T] right-padded completion mask.
        settings: of the run, for q and the clip range.
    """
    updated = mask.bool() & ~log_ratio.isnan()
    log_ratio = log_ratio.nan_to_num() * updated
    _record_spread(sums, "none", log_ratio, updated, settings)
    for style in STYLES:
        _record_weights(sums, style, mask, settings)
        _record_spread(sums, style, accumulate(log_ratio, updated, settings.q, style), updated, settings)


def _record_weights(sums: MetricSums, style: str, mask: torch.Tensor, settings: ObjectiveSettings) -> None:
    lengths = mask.sum(1).long()
    backward = weights(mask, settings.q, style, "backward")
    last = backward.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
    sums.add_values(f"traces/{style}/effective_horizon", last[lengths > 0])
    forward = weights(mask, settings.q, style, "forward")
    for name, part in _quarters(mask):
        sums.add_values(f"traces/{style}/weight/{name}", forward[part])


def _record_spread(
    sums: MetricSums, style: str, log_ratio: torch.Tensor, mask: torch.Tensor, settings: ObjectiveSettings
) -> None:
    values = log_ratio[mask]
    if not len(values):
        return
    ratio = log_ratio.exp()
    outside = ((ratio < 1 - settings.clip_low) | (ratio > 1 + settings.clip_high)).double()
    sums.add_squares(f"traces/{style}/z_std", values)
    sums.extremes(values.abs(), highest=f"traces/{style}/z_max")
    sums.add_values(f"traces/{style}/clip_fraction/all", outside[mask])
    for name, part in _quarters(mask):
        sums.add_values(f"traces/{style}/clip_fraction/{name}", outside[part])


def _quarters(mask: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """For each quarter of the rows' own lengths its name and its tokens, [B, T]."""
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    quarter = torch.arange(mask.shape[1], device=mask.device) * QUARTERS // lengths
    return [(f"quarter{n + 1}", mask.bool() & (quarter == n)) for n in range(QUARTERS)]
