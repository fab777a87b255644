"""What the eligibility traces do to the tokens of this run, for the style in use and for the others beside it."""

from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer

from app.algorithm.credit import every_variant, token_credit
from app.algorithm.objective import ObjectiveSettings
from app.algorithm.traces import STYLES, accumulate, weights
from app.errors import require
from app.rollout.metric_sums import MetricSums
from callbacks.last_update import last_update
from modules.iteration_metrics import note_metrics

if TYPE_CHECKING:
    from modules.grpo_lambda import GRPOLambdaModule

QUARTERS = 4
PLACES = ("first_quarter", "first_half", "first_three_quarters")


class TraceLogging(Callback):
    """Logs under ``traces/<style>/``, at the run's q = γ·λ:

    - ``effective_horizon``: Σ_k tr(t, k) at a row's last token: how many tokens' worth of past it holds;
    - ``weight/quarter<n>``: mean forward weight W over the n-th quarter of the rows' own lengths;
    - ``z_std``, ``z_max``: root mean square and largest size of the accumulated log-ratio, as the last update saw it;
    - ``clip_fraction/all`` and ``clip_fraction/quarter<n>``: share of tokens whose ratio leaves the clip range.

    ``traces/none/…`` gives the last two for the plain token ratio.

    And for the variant in use and every other one, ``traces/<variant>/gradient_share/first_quarter``, ``…/first_half``
    and ``…/first_three_quarters``: the share of the update's gradient by log-probabilities that falls on these parts of
    the completions, Σ|credit| there over Σ|credit| (:mod:`app.algorithm.credit`).

    Args:
        every_n_iterations: how often.
        gradient_every_n_iterations: how often the shares of the gradient, which cost more.
    """

    def __init__(self, every_n_iterations: int = 1, gradient_every_n_iterations: int = 10) -> None:
        rule = "must be at least 1"
        require(every_n_iterations >= 1, rule, every_n_iterations, "traces.every_n_iterations")
        gradient = gradient_every_n_iterations
        require(gradient >= 1, rule, gradient, "traces.gradient_every_n_iterations")
        self.every_n_iterations = every_n_iterations
        self.gradient_every_n_iterations = gradient

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "GRPOLambdaModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        spread, gradient = (
            (batch_idx + 1) % n == 0 for n in (self.every_n_iterations, self.gradient_every_n_iterations)
        )
        if pl_module.last_log_ratio is None or not (spread or gradient):
            return
        experience, sums = pl_module.experience, MetricSums()
        assert experience is not None
        if spread:
            record_traces(sums, pl_module.last_log_ratio, experience.loss_mask, pl_module.objective)
        if gradient:
            record_gradients(sums, pl_module)
        note_metrics(trainer, sums.reduce(pl_module.gather_objects))


def record_traces(sums: MetricSums, log_ratio: torch.Tensor, mask: torch.Tensor, settings: ObjectiveSettings) -> None:
    """Adds the metrics of :class:`TraceLogging` to ``sums``.

    Args:
        log_ratio: [B, T] log π_θ − log π_old; NaN on rows that took no part in the update.
        mask: [B, T] right-padded completion mask.
        settings: of the run, for q and the clip range.
    """
    updated = mask.bool() & ~log_ratio.isnan()
    log_ratio = log_ratio.nan_to_num() * updated
    quarters, of_updated = _quarters(mask), _quarters(updated)
    _record_spread(sums, "none", log_ratio, updated, of_updated, settings)
    for style in STYLES:
        _record_weights(sums, style, mask, quarters, settings)
        traces = accumulate(log_ratio, updated, settings.q, style)
        _record_spread(sums, style, traces, updated, of_updated, settings)


def record_gradients(sums: MetricSums, module: "GRPOLambdaModule") -> None:
    """Adds the shares of the gradient to ``sums``, of every variant as the last update would have had it."""
    experience, log_ratio, advantages = last_update(module)
    mask = experience.loss_mask
    given = (log_ratio, advantages, mask)
    for name, settings in every_variant(module.objective).items():
        credit = token_credit(*given, settings, experience.importance_weights, module.last_counted).abs().double()
        total = credit.sum()
        quarters = torch.stack([credit[part].sum() for part in _quarters(mask)])
        for place, share in zip(PLACES, quarters.cumsum(0) / total.clamp(min=1e-300), strict=False):
            sums.add(f"traces/{name}/gradient_share/{place}", share, total)


def _record_weights(
    sums: MetricSums, style: str, mask: torch.Tensor, quarters: torch.Tensor, settings: ObjectiveSettings
) -> None:
    lengths = mask.sum(1).long()
    backward = weights(mask, settings.q, style, "backward")
    last = backward.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
    sums.add_values(f"traces/{style}/effective_horizon", last[lengths > 0])
    _record_by_quarter(sums, f"traces/{style}/weight", weights(mask, settings.q, style, "forward"), quarters)


def _record_spread(
    sums: MetricSums,
    style: str,
    log_ratio: torch.Tensor,
    mask: torch.Tensor,
    quarters: torch.Tensor,
    settings: ObjectiveSettings,
) -> None:
    values = log_ratio[mask]
    if not len(values):
        return
    ratio = log_ratio.exp()
    outside = ((ratio < 1 - settings.clip_low) | (ratio > 1 + settings.clip_high)).double()
    sums.add_squares(f"traces/{style}/z_std", values)
    sums.extremes(values.abs(), highest=f"traces/{style}/z_max")
    sums.add_values(f"traces/{style}/clip_fraction/all", outside[mask])
    _record_by_quarter(sums, f"traces/{style}/clip_fraction", outside, quarters)


def _record_by_quarter(sums: MetricSums, name: str, values: torch.Tensor, quarters: torch.Tensor) -> None:
    """The mean of ``values`` [B, T] over each of ``quarters``."""
    totals = torch.where(quarters, values.double(), 0.0).sum((1, 2)).tolist()
    for number, (total, count) in enumerate(zip(totals, quarters.sum((1, 2)).tolist(), strict=True), start=1):
        sums.add(f"{name}/quarter{number}", total / max(1, count), count)


def _quarters(mask: torch.Tensor) -> torch.Tensor:
    """[4, B, T] the tokens of each quarter of the rows' own lengths."""
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    quarter = torch.arange(mask.shape[1], device=mask.device) * QUARTERS // lengths
    return torch.stack([mask.bool() & (quarter == n) for n in range(QUARTERS)])
