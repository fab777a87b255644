"""Estimates of a rank's memory. Shapes: B rows of a micro-batch, S tokens of prompt and completion, V vocabulary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.policy import head_log_probs
from app.policy.context import context_length, layer_configs
from app.policy.logprobs import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.nn import Parameter
    from transformers import PreTrainedConfig, PreTrainedModel

Phase = Literal["host", "held", "training", "generating"]
GIB = 2**30
FLOAT32 = 4
EIGHT_BIT = 1 + FLOAT32 / 256
"""Bytes of an 8-bit running mean: one, and a float32 scale for each block of 256."""


FFN_NAMES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff")


@dataclass(frozen=True)
class Shape:
    """What the estimates need of a decoder's configuration.

    Attributes:
        heads, kv_heads, head_size: of attention; of Mamba and its kin, which have none, 0.
        context: None where positions have no limit.
        kv_numbers: keys and values of one token in all layers, where they are not 2 × layers × heads × head size.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    context: int | None
    kv_numbers: int | None = None

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Shape":
        text, layers = config.get_text_config(), layer_configs(config)
        hidden = text.hidden_size
        heads = max(getattr(layer, "num_attention_heads", None) or 0 for layer in layers)
        return cls(
            layers=text.num_hidden_layers,
            hidden=hidden,
            heads=heads,
            kv_heads=max(getattr(layer, "num_key_value_heads", None) or heads for layer in layers),
            head_size=max(_head_size(layer) for layer in layers),
            ffn=_ffn(text),
            vocab=text.vocab_size,
            context=context_length(config),
            kv_numbers=sum(_kv_numbers(layer) for layer in layers) * text.num_hidden_layers // len(layers),
        )

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers in the keys and values of one token in all layers."""
        whole = 2 * self.layers * self.kv_heads * self.head_size
        return whole if self.kv_numbers is None else self.kv_numbers


def _head_size(layer: "PreTrainedConfig") -> int:
    heads = getattr(layer, "num_attention_heads", None)
    if not heads:
        return 0
    if getattr(layer, "kv_lora_rank", None):  # latent attention (DeepSeek): keys are the wider ones
        return layer.qk_nope_head_dim + layer.qk_rope_head_dim
    return getattr(layer, "head_dim", None) or layer.hidden_size // heads


def _kv_numbers(layer: "PreTrainedConfig") -> int:
    """Of one token in one layer; of latent attention transformers caches what all heads' keys and values come from."""
    if getattr(layer, "kv_lora_rank", None):
        return layer.kv_lora_rank + layer.qk_rope_head_dim
    heads = getattr(layer, "num_key_value_heads", None) or getattr(layer, "num_attention_heads", None) or 0
    return 2 * heads * _head_size(layer)


def _ffn(text: "PreTrainedConfig") -> int:
    """The width of a layer's feed-forward part, of the widest layer where each has its own."""
    found = next((value for name in FFN_NAMES if (value := getattr(text, name, None))), 4 * text.hidden_size)
    return max(found) if isinstance(found, list | tuple) else found


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


def count_parameters(model: "PreTrainedModel") -> ParameterCounts:
    """Counts of a model, which may lie on the meta device."""
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [_size(module.parameters()) for module in model.modules() if type(module).__name__ in names]
    return ParameterCounts(
        total=_size(parameters),
        trainable=_size(trainable),
        layer=max(layers, default=0),
        rest=_size(parameters) - sum(layers),
        total_bytes=_bytes(parameters),
        trainable_bytes=_bytes(trainable),
    )


def _size(parameters: "Iterable[Parameter]") -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(parameters: "Iterable[Parameter]") -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


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
        gathered_bytes: of a parameter as a forward pass finds it.
        shards: parts that all of it is cut into.
        sharded: whether parameters are gathered layer by layer, be it of one part only.
        buckets: whether the strategy copies gradients into buckets (DDP).
        optimizer: its name in :class:`OptimizerSettings`.
        reference: "none", "device", or "host" where the frozen copy waits in host memory.
        offload: whether parameters, gradients and optimiser state are in host memory.
    """

    counts: ParameterCounts
    gathered_bytes: int
    shards: int = 1
    sharded: bool = False
    buckets: bool = False
    optimizer: str = "adamw"
    reference: Literal["none", "device", "host"] = "none"
    offload: bool = False


def resident_items(held: Resident) -> list[Item]:
    """Weights, gradients, optimiser and reference."""
    counts, shards = held.counts, held.shards
    over = f" / {shards} ranks" if shards > 1 else ""
    place: Phase = "host" if held.offload else "held"
    trained, gradients = f"{counts.trainable:,} parameters", counts.trainable_bytes
    moments = 2 * EIGHT_BIT * counts.trainable if held.optimizer == "adamw8bit" else 2 * gradients
    items = [
        Item("weights", counts.total_bytes / shards, place, f"{counts.total:,} parameters{over}"),
        Item("gradients", gradients / shards, place, trained + over),
        Item("optimiser", moments / shards, place, f"{held.optimizer}, two running means of each{over}"),
    ]
    if held.buckets:
        items.append(Item("gradient buckets", gradients, "held", "DDP's copy of the gradients"))
    if held.reference != "none":
        waits: Phase = "held" if held.reference == "device" else "host"
        items.append(Item("reference", counts.total_bytes / shards, waits, f"frozen copy of the policy{over}"))
    return items + (_gathered(held) if held.sharded else [])


def _gathered(held: Resident) -> list[Item]:
    """What is whole for a moment: the layer at hand, the one that is fetched meanwhile, and what is in no layer."""
    counts, each = held.counts, held.gathered_bytes
    weights, gradients = counts.rest + 2 * counts.layer, counts.rest + counts.layer
    return [
        Item("gathered weights", weights * each, "training", f"embeddings, head and 2 layers × {each} B"),
        Item("their gradients", gradients * (each + FLOAT32), "training", f"× {each} B, and float32 to reduce them"),
    ]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    Attributes:
        rows: B.
        tokens: S.
        logit_tokens: tokens a row whose log-probs are taken: the completion's in RL; in the supervised stage those
            from the shortest prompt's end on, at most all.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        whole_logits: whether log-probs are made of them, for the output head is no plain product.
    """

    rows: int
    tokens: int
    logit_tokens: int
    checkpointing: bool
    whole_logits: bool = False


@dataclass(frozen=True)
class Numbers:
    """Sizes of activations: ``bytes`` of a product of matrices; under ``mixed`` sums and norms are float32."""

    bytes: int
    mixed: bool = False

    @property
    def residual(self) -> int:
        """Bytes of a number of the residual stream."""
        return FLOAT32 if self.mixed else self.bytes


def training_items(batch: MicroBatch, shape: Shape, numbers: Numbers, counts: ParameterCounts) -> list[Item]:
    """Activations, and what log-probs take, of one micro-batch at its longest."""
    layer = layer_activation_bytes(batch.rows, batch.tokens, shape, numbers)
    stream = batch.rows * batch.tokens * shape.hidden * numbers.residual
    whole, stored = shape.layers * layer, shape.layers * stream + layer
    if numbers.mixed:  # each bfloat16 copy of a matrix is kept until its backward pass, but for parts of the head's
        head = counts.rest if batch.whole_logits else 0
        copied, copied_at_once = counts.total - counts.rest + head, counts.layer + head
        whole, stored = whole + copied * numbers.bytes, stored + copied_at_once * numbers.bytes
    kept, other = (stored, whole) if batch.checkpointing else (whole, stored)
    names = ("with", "without") if batch.checkpointing else ("without", "with")
    formula = f"{names[0]} checkpointing; {names[1]}: {format_bytes(other)}"
    made = _logits if batch.whole_logits else _log_probs
    return [Item("activations", kept, "training", formula), made(batch, shape, numbers)]


def _log_probs(batch: MicroBatch, shape: Shape, numbers: Numbers) -> Item:
    """Hidden states of the tokens, their gradient in float32, a copy in low precision where it is one; logits in
    tiles."""
    low = numbers.bytes if numbers.bytes < FLOAT32 else 0
    tokens, each = batch.rows * batch.logit_tokens, numbers.residual + FLOAT32 + low
    tiles = 3 * min(tokens * shape.vocab, head_log_probs.TILE_ELEMENTS) * FLOAT32
    name = f"{batch.rows} × {batch.logit_tokens:,} × {shape.hidden:,} × {each} B, and tiles of logits"
    return Item("log-probs", tokens * shape.hidden * each + tiles, "training", name)


def _logits(batch: MicroBatch, shape: Shape, numbers: Numbers) -> Item:
    elements, each = batch.rows * batch.logit_tokens * shape.vocab, numbers.bytes
    name = f"{batch.rows} × {batch.logit_tokens:,} × {shape.vocab:,}"
    chunks = 3 * min(elements, CHUNK_ELEMENTS) * FLOAT32
    return Item("logits", elements * 2 * each + chunks, "training", f"{name} × 2 × {each} B, and float32 chunks")


def layer_activation_bytes(rows: int, tokens: int, shape: Shape, numbers: Numbers) -> float:
    """What one decoder layer keeps for the backward pass, as measured on Qwen2 and LLaMA with SDPA and padding.

    A token keeps 4 FFN widths (gate, its SiLU, up, product), 4 hidden widths (inputs of the projections), 4 × heads
    × head size (queries, repeated keys and values, attention's output), S of the mask, and in float32 2 hidden widths
    (norms) and a few statistics; under autocast the residual stream is float32 too.
    """
    attention = 4 * shape.heads * shape.head_size
    narrow = numbers.bytes * (4 * shape.ffn + 4 * shape.hidden + attention + tokens)
    wide = FLOAT32 * (2 * shape.hidden + shape.heads + 2) + (10 * shape.hidden if numbers.mixed else 0)
    return rows * tokens * (narrow + wide)


def generation_items(rows: int, tokens: int, shape: Shape, numbers: Numbers) -> list[Item]:
    """The transformers engine's: a cache written in place, and one step's logits."""
    # Rotary embeddings leave float32 keys under autocast; values stay bfloat16.
    per_token = shape.kv_elements_per_token * (numbers.residual + numbers.bytes) // 2
    # An eighth more room is made at once, and while it is made one layer lies there twice.
    cache = rows * tokens * per_token * 1.125 * (1 + 1 / shape.layers)
    sampling = rows * shape.vocab * (numbers.bytes + 3 * FLOAT32)
    return [
        Item("KV cache", cache, "generating", f"{rows} rows × {tokens:,} tokens × {per_token:,} B, and room"),
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
