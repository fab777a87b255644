"""Drawing the next token of every row: the distribution, its uniform numbers, inverse-CDF sampling.

Shapes: B rows, V vocabulary.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.seeds import derive_seed

if TYPE_CHECKING:
    from app.engines.engine import SamplingSettings


def uniforms(seed: int, index: int, count: int) -> Tensor:
    """[count] float32 numbers in [0, 1), on the CPU, for the tokens of completion ``index`` of a request.

    A pure function of its arguments, and the first numbers do not depend on ``count``. The global random state is
    neither read nor changed.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, index))
    return torch.rand(count, generator=generator)


def draw(logits: Tensor, settings: "SamplingSettings", uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability under the distribution that it was drawn from.

    Args:
        logits: [B, V], any floating dtype.
        settings: see :class:`SamplingSettings`; temperature 0 takes the most likely token and reports its
            log-probability under softmax(logits).
        uniform: [B] numbers in [0, 1); row b's token is a function of its logits and of uniform[b] alone.

    Returns:
        ids [B] int64 and log-probabilities [B] float32.
    """
    log_probs = next_token_log_probs(logits, settings)
    greedy = settings.temperature == 0
    ids = log_probs.argmax(-1, keepdim=True) if greedy else _inverse_cdf(log_probs.exp(), uniform)
    return ids.squeeze(-1), log_probs.gather(-1, ids).squeeze(-1)


def next_token_log_probs(logits: Tensor, settings: "SamplingSettings") -> Tensor:
    """[B, V] → [B, V] float32: temperature, then top-k, then top-p, then min-p, renormalised; -inf on removed
    tokens. Temperature 0 gives the plain log-softmax, truncated by nothing."""
    logits = logits.float()
    if settings.temperature == 0:
        return logits.log_softmax(-1)
    if settings.temperature != 1:
        logits = logits / settings.temperature
    if settings.top_k:
        logits = _top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = _top_p(logits, settings.top_p)
    if settings.min_p:
        logits = _min_p(logits, settings.min_p)
    return logits.log_softmax(-1)


def _top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest; ties with the k-th stay."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of tokens whose probabilities reach p: those before which less than p is summed."""
    ordered, order = logits.sort(descending=True, stable=True)
    probs = ordered.softmax(-1)
    beyond = probs.cumsum(-1) - probs >= p
    beyond[:, 0] = False
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)


def _min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens of at least p times the most likely one's probability."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def _inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """[B, 1] the first token at which the cumulative sum passes uniform · (whole sum); any where sums are NaN."""
    sums = probs.cumsum(-1)
    total = sums[:, -1:]
    # Rounding must never push the threshold up to the whole sum, behind which lie only removed tokens.
    threshold = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, threshold, right=True).clamp(max=probs.shape[-1] - 1)
