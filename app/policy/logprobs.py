"""Log-probabilities and entropies of completion tokens under a policy.

They come from the hidden states of the real tokens alone (:mod:`app.policy.head_log_probs`) where the policy was found
to allow it (:mod:`app.policy.head`), and from whole logits otherwise.

Shapes: B rows, T completion tokens, S tokens that the model is given, V vocabulary, N tokens of all rows. Annotations
name them, and are checked at every call in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx

from app.errors import ConfigurationError
from app.policy.head import output_head, replaced_head, returning
from app.policy.head_log_probs import FlatStatistics, OutputHead, Wanted, head_log_probs, product_dtype
from app.policy.packing import TokenBatch, right_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADS_ON_RIGHT = "pads_on_right"
"""Attribute of a model that :mod:`app.policy.probe` found to be right only where no padding comes before a row."""
CHUNK_ELEMENTS = 2**22
"""Logits that are turned into float32 at once: 16 MiB a temporary, whatever the vocabulary."""

PerToken = Float[Tensor, "B T"]
Selection = Callable[[Float[Tensor, "B S D"]], Float[Tensor, "N D"]]
"""Takes rows out of hidden states, or of logits; differentiable. Columns are to be counted from the end, for not every
family obeys ``logits_to_keep``."""


@dataclass(frozen=True)
class TokenStatistics:
    """What a policy thinks of the tokens of a batch; 0 where a token is padding.

    Attributes:
        log_probs: [B, T] float32 (float64 for a float64 model); carries the gradient.
        entropy: [B, T] of the next-token distributions, in nats, with a gradient where it was asked for; or None.
    """

    log_probs: PerToken
    entropy: PerToken | None = None


def token_log_probs(
    model: "PreTrainedModel",
    batch: TokenBatch,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> TokenStatistics:
    """Evaluates ``model`` once on ``batch`` under softmax(logits / temperature).

    Gradients flow unless the caller switched them off. The mode (train or eval) is the caller's, too.

    Args:
        with_entropy: for logging, without a gradient.
        entropy_gradient: the entropy with its gradient, as a bonus needs it.

    Raises:
        ConfigurationError: temperature is not positive: greedy decoding has no density to speak of.
    """
    if temperature <= 0:
        raise ConfigurationError(f"log-probabilities need a positive temperature, got {temperature}")
    if output_head(model) is not None:
        rows, places, inputs = _completion_tokens(batch, getattr(model, PADS_ON_RIGHT, False))
        ids = batch.completion_ids.flatten()[places]
        found = statistics_at(model, rows, ids, temperature, with_entropy, entropy_gradient, **inputs)
        return at_places(found, places, batch.completion_mask)
    logits = completion_logits(model, batch)
    entropy = None
    if entropy_gradient:
        log_probs, entropy = log_softmax_and_entropy(logits, batch.completion_ids, temperature)
    else:
        log_probs = selective_log_softmax(logits, batch.completion_ids, temperature)
        entropy = entropy_of(logits.detach(), temperature) if with_entropy else None
    padding = ~batch.completion_mask
    return TokenStatistics(
        log_probs.masked_fill(padding, 0.0), None if entropy is None else entropy.masked_fill(padding, 0.0)
    )


def statistics_at(
    model: "PreTrainedModel",
    rows: Selection,
    ids: Int[Tensor, " N"],
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
    with_best: bool = False,
    **inputs: object,
) -> FlatStatistics:
    """Calls ``model`` once, and evaluates ``ids`` under the distributions that it predicts at ``rows``.

    Args:
        model: in any wrapping; its weights need to be whole in its own forward pass alone.
        rows: applied to the head's hidden states, or to logits where the model needs them.
        temperature, with_entropy, entropy_gradient: as of :func:`token_log_probs`.
        with_best: the likeliest tokens, too.
        inputs: the model's, such as ``input_ids``, ``past_key_values`` (a cache is filled as ever), ``logits_to_keep``.
    """
    wanted = Wanted(temperature, with_entropy, entropy_gradient, with_best)
    head = output_head(model)
    if head is not None:
        return _statistics_of_hidden(model, head, rows, ids, wanted, **inputs)
    logits = rows(model(**inputs).logits)[None]
    best = logits.detach().argmax(-1)[0] if with_best else None
    if entropy_gradient:
        log_probs, entropy = log_softmax_and_entropy(logits, ids[None], temperature)
        return FlatStatistics(log_probs[0], entropy[0], best)
    log_probs = selective_log_softmax(logits, ids[None], temperature)
    return FlatStatistics(log_probs[0], entropy_of(logits.detach(), temperature)[0] if with_entropy else None, best)


def _statistics_of_hidden(
    model: "PreTrainedModel",
    head: OutputHead,
    rows: Selection,
    ids: Int[Tensor, " N"],
    wanted: Wanted,
    **inputs: object,
) -> FlatStatistics:
    """As :func:`statistics_at`, where the head is. What carries a gradient leaves the model as its result."""
    found: list[FlatStatistics] = []

    def compute(layer: torch.nn.Linear, hidden: Float[Tensor, "B S H"]) -> Float[Tensor, "B S 1"]:
        found.append(head_log_probs(rows(hidden), layer.weight, layer.bias, ids, head, wanted))
        return hidden.new_zeros((*hidden.shape[:-1], 1), dtype=product_dtype(layer.weight))

    def packed() -> Float[Tensor, "kinds N"]:
        kinds = [found[0].log_probs, *([found[0].entropy] if wanted.entropy_gradient else [])]
        return torch.stack(kinds)

    with replaced_head(model, compute), returning(model, packed):
        log_probs, *entropy = model(**inputs).logits.unbind()
    return replace(found[0], log_probs=log_probs, entropy=entropy[0] if entropy else found[0].entropy)


def _completion_tokens(batch: TokenBatch, on_right: bool) -> tuple[Selection, Int[Tensor, " N"], dict[str, Any]]:
    """What a model is to be given, where it predicts the completions' real tokens, and their places in [B · T].

    They are counted on the CPU: a mask on a GPU would have to be waited for.
    """
    width = batch.completion_ids.shape[1]
    device = batch.input_ids.device
    row, column = (torch.arange(width) < batch.completion_lengths[:, None]).nonzero(as_tuple=True)
    places = (row * width + column).to(device, non_blocking=True)
    if on_right:
        ids, mask, position_ids = right_padded(batch)
        kept = ids.shape[1] - 1
        index = (row * kept + column + batch.prompt_lengths[row] - 1).to(device, non_blocking=True)
    else:
        ids, mask, position_ids = batch.input_ids, batch.attention_mask, batch.position_ids
        kept, index = width, places
    # The last column predicts a token that nobody sampled: it is left out.
    inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": position_ids[:, :-1]}

    def rows(values: Float[Tensor, "B S D"]) -> Float[Tensor, "N D"]:
        flat = last_columns(values, kept).flatten(0, 1)
        return flat if len(flat) == len(index) else flat.index_select(0, index)

    return rows, places, {**inputs, "use_cache": False, "logits_to_keep": kept}


def at_places(found: FlatStatistics, places: Int[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> TokenStatistics:
    """What was found of N tokens, each at its place in [B · T]; 0 elsewhere, and where ``mask`` is false."""

    def placed(values: Float[Tensor, " N"]) -> PerToken:
        return values.new_zeros(mask.numel()).index_copy(0, places, values).view(mask.shape).masked_fill(~mask, 0.0)

    return TokenStatistics(placed(found.log_probs), None if found.entropy is None else placed(found.entropy))


def completion_logits(model: "PreTrainedModel", batch: TokenBatch) -> Float[Tensor, "B T V"]:
    """[B, T, V] logits that predict the completion tokens, in the dtype that the model computes in."""
    if getattr(model, PADS_ON_RIGHT, False):
        return _right_padded_logits(model, batch)
    # The last column predicts a token that nobody sampled: it is left out.
    return last_logits(
        model,
        batch.completion_ids.shape[1],
        input_ids=batch.input_ids[:, :-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, :-1],
    )


def _right_padded_logits(model: "PreTrainedModel", batch: TokenBatch) -> Float[Tensor, "B T V"]:
    """As :func:`completion_logits`, of rows that start in the first column: a row's completion then starts anywhere,
    and logits are made of every column."""
    ids, mask, position_ids = right_padded(batch)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": position_ids[:, :-1]}
    logits = last_logits(model, ids.shape[1] - 1, **inputs)
    columns = torch.arange(batch.completion_ids.shape[1]) + batch.prompt_lengths[:, None] - 1
    return logits.gather(1, columns.to(logits.device)[..., None].expand(-1, -1, logits.shape[-1]))


def last_logits(model: "PreTrainedModel", length: int, **inputs: Int[Tensor, "B S"]) -> Float[Tensor, "B {length} V"]:
    """[B, length, V] logits at the last ``length`` positions of ``inputs``, in the dtype that the model computes in."""
    return last_columns(model(**inputs, use_cache=False, logits_to_keep=length).logits, length)


def last_columns(values: Float[Tensor, "B S D"], length: int) -> Float[Tensor, "B {length} D"]:
    """The last ``length`` of the S columns."""
    # The backward pass of a slice, be it of everything, would copy the whole gradient.
    return values if values.shape[1] == length else values[:, -length:]


def selective_log_softmax(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> PerToken:
    """log softmax(logits / temperature) at ``ids``: logits [B, T, V], ids [B, T] → [B, T], float32 at least.

    Neither direction holds more than :data:`CHUNK_ELEMENTS` float32 logits beside the logits themselves; the
    backward pass writes their gradient (in their own dtype) and nothing else of that size.
    """
    chosen = _SelectiveLogSoftmax.apply(logits.flatten(0, 1), ids.flatten(), temperature)
    return chosen.view(ids.shape)


def log_softmax_and_entropy(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> tuple[PerToken, PerToken]:
    """:func:`selective_log_softmax` and the entropy of the same distributions in nats, both with their gradients.

    One backward pass for both, so that the gradient of the logits exists once.
    """
    chosen, entropy = _LogSoftmaxAndEntropy.apply(logits.flatten(0, 1), ids.flatten(), temperature)
    return chosen.view(ids.shape), entropy.view(ids.shape)


@torch.no_grad()
def entropy_of(logits: Float[Tensor, "B T V"], temperature: float = 1.0) -> PerToken:
    """Entropy in nats of softmax(logits / temperature): [B, T, V] → [B, T], float32 at least, no gradient."""
    parts = []
    for chunk in _chunks(logits.flatten(0, 1)):
        parts.append(_entropy(_scaled(chunk, temperature).log_softmax(-1)))
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


class _LogSoftmaxAndEntropy(torch.autograd.Function):
    """logits [N, V], ids [N] → log-probs [N], entropy H [N]; d H_i / d logits = −p·(log p + H_i) / temperature."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Float[Tensor, "N V"], ids: Int[Tensor, " N"], temperature: float
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        chosen, normalisers, entropies = [], [], []
        for chunk, chunk_ids in zip(_chunks(logits), _chunks(ids, width=logits.shape[1]), strict=True):
            scaled = _scaled(chunk, temperature)
            normaliser = scaled.logsumexp(-1, keepdim=True)
            log_probs = scaled - normaliser
            chosen.append(log_probs.gather(-1, chunk_ids[:, None]).squeeze(-1))
            normalisers.append(normaliser.squeeze(-1))
            entropies.append(_entropy(log_probs))
        entropy = torch.cat(entropies)
        ctx.save_for_backward(logits, ids, torch.cat(normalisers), entropy)
        ctx.temperature = temperature
        return torch.cat(chosen), entropy

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Float[Tensor, " N"]) -> tuple[Float[Tensor, "N V"], None, None]:
        logits, ids, normaliser, entropy = ctx.saved_tensors
        outer, outer_entropy = (gradient / ctx.temperature for gradient in gradients)
        result = torch.empty_like(logits)
        width = logits.shape[1]
        rows = (_chunks(x, width) for x in (ids, normaliser, entropy, outer, outer_entropy))
        for chunk, part, *of_rows in zip(_chunks(logits), _chunks(result), *rows, strict=True):
            chunk_ids, chunk_normaliser, chunk_entropy, chosen, undecided = (each[:, None] for each in of_rows)
            log_probs = _finite(_scaled(chunk, ctx.temperature) - chunk_normaliser)
            gradient = log_probs.exp().mul_(-chosen - undecided * (log_probs + chunk_entropy))
            part.copy_(gradient.scatter_add_(-1, chunk_ids, chosen))
        return result, None, None


def _entropy(log_probs: Float[Tensor, "rows V"]) -> Float[Tensor, " rows"]:
    return -(log_probs.exp() * _finite(log_probs)).sum(-1)


def _finite(log_probs: Float[Tensor, "rows V"]) -> Float[Tensor, "rows V"]:
    """0 · log 0 = 0: a logit of -inf must not make a sum NaN. exp(-10⁴) is 0 in every dtype."""
    return log_probs.clamp(min=-1e4)


def _scaled(logits: Float[Tensor, "rows V"], temperature: float) -> Float[Tensor, "rows V"]:
    """In float32 at least, divided by the temperature."""
    raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return raised if temperature == 1 else raised / temperature


def _chunks(values: Shaped[Tensor, "N ..."], width: int | None = None) -> tuple[Tensor, ...]:
    """Views of consecutive rows; rows of ``width`` elements (its own by default) fill up CHUNK_ELEMENTS."""
    return values.split(max(1, CHUNK_ELEMENTS // (width or values.shape[-1])))
