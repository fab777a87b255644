"""Estimates of a rank's memory. Shapes: B rows of a micro-batch, S tokens of prompt and completion, V vocabulary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.policy.logprobs import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.nn import Parameter
    from transformers import PreTrainedConfig, PreTrainedModel

Phase = Literal["held", "training", "generating"]
GIB = 2**30
FLOAT32 = 4
EIGHT_BIT = 1 + FLOAT32 / 256
"""Bytes of an 8-bit running mean: one, and a float32 scale for each block of 256."""


@dataclass(frozen=True)
class Shape:
    """What the estimates need of a decoder's configuration; ``context`` is None where positions have no limit."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    context: int | None

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Shape":
        text = config.get_text_config()
        heads, hidden = text.num_attention_heads, text.hidden_size
        return cls(
            layers=text.num_hidden_layers,
            hidden=hidden,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or hidden // heads,
            ffn=getattr(text, "intermediate_size", None) or 4 * hidden,
            vocab=text.vocab_size,
            context=getattr(text, "max_position_embeddings", None),
        )

    def kv_bytes_per_token(self, bytes_each: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_each


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters, tied ones once.

    Attributes:
        total: of the policy, adapters included.
        trainable: those that take a gradient.
        layer: of the largest decoder layer.
        rest: outside the decoder layers (embeddings, output head, last norm).
        total_bytes: of all of them as they are stored.
        trainable_bytes: of those that take a gradient.
    """

    total: int
    trainable: int
    layer: int
    rest: int
    total_bytes: int
    trainable_bytes: int


def count_parameters(model: "PreTrainedModel", bytes_each: int | None = None) -> ParameterCounts:
    """Counts of a model, which may lie on the meta device; ``bytes_each`` replaces the parameters' own size."""
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [_size(module.parameters()) for module in model.modules() if type(module).__name__ in names]
    return ParameterCounts(
        total=_size(parameters),
        trainable=_size(trainable),
        layer=max(layers, default=0),
        rest=_size(parameters) - sum(layers),
        total_bytes=_bytes(parameters, bytes_each),
        trainable_bytes=_bytes(trainable, bytes_each),
    )


def _size(parameters: "Iterable[Parameter]") -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(parameters: "Iterable[Parameter]", each: int | None) -> int:
    return sum(parameter.numel() * (each or parameter.element_size()) for parameter in parameters)


@dataclass(frozen=True)
class Item:
    """One line of the estimate; ``phase`` says when the memory is needed."""

    name: str
    bytes: float
    phase: Phase
    formula: str


@dataclass(frozen=True)
class Resident:
    """What a rank holds throughout.

    Attributes:
        counts: of the policy.
        compute_bytes: of a parameter in a forward pass; fewer than it is stored in under mixed precision.
        shards: parts that all of it is cut into.
        buckets: whether the strategy copies gradients into buckets (DDP).
        optimizer: its name in :class:`OptimizerSettings`.
        reference: whether a frozen copy of the policy is held.
    """

    counts: ParameterCounts
    compute_bytes: int
    shards: int
    buckets: bool
    optimizer: str
    reference: bool


def resident_items(held: Resident) -> list[Item]:
    """Weights, gradients, optimiser and reference."""
    counts, shards = held.counts, held.shards
    over = f" / {shards} ranks" if shards > 1 else ""
    trained, gradients = f"{counts.trainable:,} parameters", counts.trainable_bytes
    moments = 2 * EIGHT_BIT * counts.trainable if held.optimizer == "adamw8bit" else 2 * gradients
    items = [
        Item("weights", counts.total_bytes / shards, "held", f"{counts.total:,} parameters{over}"),
        Item("gradients", gradients / shards, "held", trained + over),
        Item("optimiser", moments / shards, "held", f"{held.optimizer}, two running means of each{over}"),
    ]
    if held.buckets:
        items.append(Item("gradient buckets", gradients, "held", "DDP's copy of the gradients"))
    if held.reference:
        items.append(Item("reference", counts.total_bytes / shards, "held", f"frozen copy of the policy{over}"))
    return [*items, *_transient_weights(held)]


def _transient_weights(held: Resident) -> list[Item]:
    counts, each = held.counts, held.compute_bytes
    if held.shards > 1:
        gathered = (counts.rest + 2 * counts.layer) * each
        return [Item("gathered weights", gathered, "held", f"embeddings, head and 2 layers × {each} B")]
    if counts.total * each < counts.total_bytes:
        return [Item("autocast copies", counts.total * each, "training", f"weights × {each} B")]
    return []


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    Attributes:
        rows: B.
        tokens: S.
        logit_tokens: tokens a row whose logits are kept: the completion's in RL, all in the supervised stage.
        supervised: whether logits become float32 as a whole, as cross-entropy has it.
        checkpointing: whether a layer's activations are computed again in the backward pass.
    """

    rows: int
    tokens: int
    logit_tokens: int
    supervised: bool
    checkpointing: bool


def training_items(batch: MicroBatch, shape: Shape, compute_bytes: int, mixed: bool) -> list[Item]:
    """Activations and logits of one micro-batch at its longest."""
    elements = batch.rows * batch.logit_tokens * shape.vocab
    name = f"{batch.rows} × {batch.logit_tokens:,} × {shape.vocab:,}"
    if batch.supervised:  # logits, their gradient, and float32: a copy, its log-softmax, its gradient
        logits = elements * (2 * compute_bytes + 3 * FLOAT32)
        logits_formula = f"{name} × (2 × {compute_bytes} + 3 × 4) B"
    else:
        logits = elements * 2 * compute_bytes + 3 * CHUNK_ELEMENTS * FLOAT32
        logits_formula = f"{name} × 2 × {compute_bytes} B, and float32 chunks"
    layer = layer_activation_bytes(batch.rows, batch.tokens, shape, compute_bytes, mixed)
    residual = batch.rows * batch.tokens * shape.hidden * (FLOAT32 if mixed else compute_bytes)
    whole, stored = shape.layers * layer, shape.layers * residual + layer
    switch = "with checkpointing" if batch.checkpointing else "without checkpointing"
    other = f"{'without' if batch.checkpointing else 'with'}: {format_bytes(whole if batch.checkpointing else stored)}"
    return [
        Item("activations", stored if batch.checkpointing else whole, "training", f"{switch}; {other}"),
        Item("logits", logits, "training", logits_formula),
    ]


def layer_activation_bytes(rows: int, tokens: int, shape: Shape, compute_bytes: int, mixed: bool) -> float:
    """What one decoder layer keeps for the backward pass, as measured on Qwen2 and LLaMA with SDPA and padding.

    A token keeps 4 FFN widths (gate, its SiLU, up, product), 4 hidden widths (inputs of the projections), 4 × heads
    × head size (queries, repeated keys and values, attention's output), S of the mask, and in float32 2 hidden widths
    (norms) and a few statistics; under mixed precision the residual stream is float32 too.
    """
    attention = 4 * shape.heads * shape.head_size
    narrow = compute_bytes * (4 * shape.ffn + 4 * shape.hidden + attention + tokens)
    wide = FLOAT32 * (2 * shape.hidden + shape.heads + 2) + (10 * shape.hidden if mixed else 0)
    return rows * tokens * (narrow + wide)


def generation_items(rows: int, tokens: int, shape: Shape, bytes_each: int) -> list[Item]:
    """The transformers engine's: a cache written in place, and one step's logits."""
    per_token = shape.kv_bytes_per_token(bytes_each)
    # An eighth more room is made at once, and while it is made one layer lies there twice.
    cache = rows * tokens * per_token * 1.125 * (1 + 1 / shape.layers)
    formula = f"{rows} rows × {tokens:,} tokens × {per_token:,} B, and room"
    sampling = rows * shape.vocab * (bytes_each + 3 * FLOAT32)
    return [
        Item("KV cache", cache, "generating", formula),
        Item("sampling", sampling, "generating", f"logits of {rows} rows, and 3 float32 copies"),
    ]


def peak(items: list[Item]) -> float:
    """What is held, and the larger of what training and generation need on top."""
    sums = {phase: sum(item.bytes for item in items if item.phase == phase) for phase in ("training", "generating")}
    return sum(item.bytes for item in items if item.phase == "held") + max(sums.values())


def format_bytes(value: float) -> str:
    """``12.34 GiB``, ``5.6 MiB`` or ``789 B``."""
    if value >= GIB:
        return f"{value / GIB:,.2f} GiB"
    return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB"
