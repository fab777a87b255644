"""Log-probabilities and entropies of completion tokens under a policy.

Shapes: B rows, T completion tokens, V vocabulary, N = B·T. Annotations name them, and are checked at every call in the
tests.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx

from app.errors import ConfigurationError
from app.policy.packing import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**22
"""Logits that are turned into float32 at once: 16 MiB a temporary, whatever the vocabulary."""

PerToken = Float[Tensor, "B T"]


@dataclass(frozen=True)
class TokenStatistics:
    """What a policy thinks of the tokens of a batch; 0 where a token is padding.

    Attributes:
        log_probs: [B, T] float32 (float64 for a float64 model); carries the gradient.
        entropy: [B, T] of the next-token distributions, in nats, without gradient; or None.
    """

    log_probs: PerToken
    entropy: PerToken | None = None


def token_log_probs(
    model: "PreTrainedModel", batch: TokenBatch, temperature: float = 1.0, with_entropy: bool = False
) -> TokenStatistics:
    """Evaluates ``model`` once on ``batch`` under softmax(logits / temperature).

    Gradients flow unless the caller switched them off. The mode (train or eval) is the caller's, too.

    Raises:
        ConfigurationError: temperature is not positive: greedy decoding has no density to speak of.
    """
    if temperature <= 0:
        raise ConfigurationError(f"log-probabilities need a positive temperature, got {temperature}")
    tokens = batch.completion_ids.shape[1]
    # The last column predicts a token that nobody sampled: it is left out.
    logits = last_logits(
        model,
        tokens,
        input_ids=batch.input_ids[:, :-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, :-1],
    )
    log_probs = selective_log_softmax(logits, batch.completion_ids, temperature)
    padding = ~batch.completion_mask
    entropy = entropy_of(logits.detach(), temperature).masked_fill(padding, 0.0) if with_entropy else None
    return TokenStatistics(log_probs.masked_fill(padding, 0.0), entropy)


def last_logits(model: "PreTrainedModel", length: int, **inputs: Int[Tensor, "B S"]) -> Float[Tensor, "B {length} V"]:
    """[B, length, V] logits at the last ``length`` positions of ``inputs``, in the dtype that the model computes in."""
    logits = model(**inputs, use_cache=False, logits_to_keep=length).logits
    # The backward pass of a slice, be it of everything, would copy the whole gradient.
    return logits if logits.shape[1] == length else logits[:, -length:]


def selective_log_softmax(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> PerToken:
    """log softmax(logits / temperature) at ``ids``: logits [B, T, V], ids [B, T] → [B, T], float32 at least.

    Neither direction holds more than :data:`CHUNK_ELEMENTS` float32 logits beside the logits themselves; the
    backward pass writes their gradient (in their own dtype) and nothing else of that size.
    """
    chosen = _SelectiveLogSoftmax.apply(logits.flatten(0, 1), ids.flatten(), temperature)
    return chosen.view(ids.shape)


@torch.no_grad()
def entropy_of(logits: Float[Tensor, "B T V"], temperature: float = 1.0) -> PerToken:
    """Entropy in nats of softmax(logits / temperature): [B, T, V] → [B, T], float32 at least, no gradient."""
    parts = []
    for chunk in _chunks(logits.flatten(0, 1)):
        log_probs = _scaled(chunk, temperature).log_softmax(-1)
        # 0 · log 0 = 0: a logit of -inf must not make the sum NaN
        parts.append(-(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1))
    return torch.cat(parts).view(logits.shape[:2])


class _SelectiveLogSoftmax(torch.autograd.Function):
    """logits [N, V], ids [N] → [N]; d logp_i / d logits = (onehot(id_i) − softmax) / temperature."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Float[Tensor, "N V"], ids: Int[Tensor, " N"], temperature: float
    ) -> Float[Tensor, " N"]:
        chosen, normalisers = [], []
        for chunk, chunk_ids in zip(_chunks(logits), _chunks(ids, width=logits.shape[1]), strict=True):
            scaled = _scaled(chunk, temperature)
            normaliser = scaled.logsumexp(-1)
            chosen.append(scaled.gather(-1, chunk_ids[:, None]).squeeze(-1) - normaliser)
            normalisers.append(normaliser)
        ctx.save_for_backward(logits, ids, torch.cat(normalisers))
        ctx.temperature = temperature
        return torch.cat(chosen)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Float[Tensor, " N"]) -> tuple[Float[Tensor, "N V"], None, None]:
        logits, ids, normaliser = ctx.saved_tensors
        outer = gradients[0] / ctx.temperature
        result = torch.empty_like(logits)
        width = logits.shape[1]
        parts = zip(
            _chunks(logits),
            *(_chunks(x, width) for x in (ids, normaliser, outer)),
            _chunks(result),
            strict=True,
        )
        for chunk, chunk_ids, chunk_normaliser, chunk_outer, chunk_result in parts:
            probs = (_scaled(chunk, ctx.temperature) - chunk_normaliser[:, None]).exp_()
            gradient = probs.mul_(-chunk_outer[:, None])
            chunk_result.copy_(gradient.scatter_add_(-1, chunk_ids[:, None], chunk_outer[:, None]))
        return result, None, None


def _scaled(logits: Float[Tensor, "rows V"], temperature: float) -> Float[Tensor, "rows V"]:
    """In float32 at least, divided by the temperature."""
    raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return raised if temperature == 1 else raised / temperature


def _chunks(values: Shaped[Tensor, "N ..."], width: int | None = None) -> tuple[Tensor, ...]:
    """Views of consecutive rows; rows of ``width`` elements (its own by default) fill up CHUNK_ELEMENTS."""
    return values.split(max(1, CHUNK_ELEMENTS // (width or values.shape[-1])))
