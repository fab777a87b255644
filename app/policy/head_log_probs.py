"""Log-probabilities and entropies of tokens from hidden states and a head's weights; whole logits never exist.

Logits are made a tile at a time: a part of the vocabulary by a block of rows. The forward pass keeps a few numbers a
row, and the backward pass makes each tile again. The vocabulary is what the outer loop goes over, so that each row of
the weight's gradient is written once: summed over parts of the rows instead, it would have to be kept in float32, or be
rounded to bfloat16 each time.

Shapes: N rows, H hidden width, V vocabulary. Annotations name them, and are checked at every call in the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear

TILE_ELEMENTS = 2**22
"""Logits that exist at once: 16 MiB in float32, of which at most :data:`TILES` are held, whatever N and V."""
TILES = 5
"""Tensors of a tile's size at the worst moment: the backward pass of an entropy under soft-capping."""
BLOCK = 2048
"""Rows of a tile, where there are as many: the tile is then as wide, which products of matrices like best."""
FINITE = -1e4
"""0 · log 0 = 0, as where a bias of -inf removes a token: exp of this is 0 in every dtype, and it is finite."""
LOWEST = -1e30
"""Below every logit, and finite: differences of two of them are 0 and not NaN."""


@dataclass(frozen=True)
class OutputHead:
    """What a model makes of its head's product z = W h + b: softcap · tanh(scale · z / softcap), or scale · z."""

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, product: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """z → logits."""
        if self.softcap is None:
            return product * self.scale
        return (product * (self.scale / self.softcap)).tanh() * self.softcap


@dataclass(frozen=True)
class FlatStatistics:
    """What a policy thinks of N tokens.

    Attributes:
        log_probs: [N] float32 (float64 of a float64 model); carries the gradient.
        entropy: [N] of the next-token distributions in nats, with a gradient where it was asked for; or None.
        best: [N] the likeliest token; or None.
    """

    log_probs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None = None
    best: Int[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside log-probs.

    Attributes:
        temperature: positive; divides the logits.
        entropy: without a gradient, for logging.
        entropy_gradient: the entropy with its gradient, as a bonus needs it.
        best: the likeliest token.
    """

    temperature: float = 1.0
    entropy: bool = False
    entropy_gradient: bool = False
    best: bool = False


def head_log_probs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    ids: Int[Tensor, " N"],
    head: OutputHead = OutputHead(),  # noqa: B008  frozen: shared safely
    wanted: Wanted = Wanted(),  # noqa: B008
) -> FlatStatistics:
    """log softmax(head.logits(hidden Wᵀ + bias) / temperature) at ``ids``, and what else is ``wanted``.

    Products of matrices are those that the model would make: in the weight's dtype, or autocast's where it is on. All
    else is float32 (float64 for float64 weights). Gradients reach ``hidden``, ``weight`` and ``bias``.

    Beside the results and the gradients themselves no more than TILES · TILE_ELEMENTS float32 numbers are held, and
    [N, H] in float32 in the backward pass. What fits into one tile is kept for the backward pass.
    """
    dtype = product_dtype(weight)
    with torch.autocast(weight.device.type, enabled=False):
        log_probs, entropy, best = _HeadLogProbs.apply(hidden, weight, bias, ids, _Form(head, wanted, dtype))
    return FlatStatistics(log_probs, entropy, best)


def product_dtype(weight: Float[Tensor, "V H"]) -> torch.dtype:
    """That a head of this weight makes its product in, where it is called."""
    kind = weight.device.type
    mixed = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype(kind) if mixed else weight.dtype


@dataclass(frozen=True)
class _Form:
    """How logits come from hidden states: the same in both passes."""

    head: OutputHead
    wanted: Wanted
    dtype: torch.dtype

    @property
    def raised(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def step(self) -> float:
        """d scaled / d product, where nothing is capped."""
        return self.head.scale / self.wanted.temperature

    def scaled(self, product: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Logits / temperature in float32, from the head's product, which is overwritten where it is float32 itself."""
        raised = product.to(self.raised)
        if self.head.softcap is None:
            return raised if self.step == 1 else raised.mul_(self.step)
        capped = raised.mul_(self.head.scale / self.head.softcap).tanh_()
        return capped.mul_(self.head.softcap / self.wanted.temperature)

    def slope(self, scaled: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"] | None:
        """d scaled / d product over :attr:`step`, where it is not 1 everywhere."""
        if self.head.softcap is None:
            return None
        return (scaled * (self.wanted.temperature / self.head.softcap)).square_().neg_().add_(1)


class _Rows:
    """The state of an online softmax: what is known of each row's distribution after some parts of the vocabulary."""

    def __init__(self, ids: Int[Tensor, " N"], form: _Form) -> None:
        def filled(value: float) -> Float[Tensor, " N"]:
            return torch.full(ids.shape, value, dtype=form.raised, device=ids.device)

        self.ids = ids
        self.highest, self.chosen = filled(LOWEST), filled(LOWEST)
        self.total = filled(0.0)  # Σ exp(x − highest)
        with_entropy = form.wanted.entropy or form.wanted.entropy_gradient
        self.weighted = filled(0.0) if with_entropy else None  # Σ exp(x − highest) · (x − highest)
        self.best = torch.zeros_like(ids) if form.wanted.best else None

    def take(self, rows: slice, first: int, scaled: Float[Tensor, "rows columns"]) -> None:
        """Takes in the columns from ``first`` on, and leaves ``scaled`` overwritten."""
        before, total = self.highest[rows], self.total[rows]
        highest = self._raise(rows, first, scaled)
        inside, local = _inside(self.ids[rows], first, scaled.shape[1])
        self.chosen[rows] = torch.where(inside, scaled.gather(-1, local[:, None])[:, 0], self.chosen[rows])
        shift, shifted = before - highest, scaled.sub_(highest[:, None])
        shrink = shift.exp()
        if self.weighted is None:
            probs = shifted.exp_()
        else:
            probs = shifted.clamp_(min=FINITE).exp()
            fresh = shifted.mul_(probs).sum(-1)
            self.weighted[rows] = shrink * (self.weighted[rows] + total * shift) + fresh
        self.total[rows] = shrink * total + probs.sum(-1)
        self.highest[rows] = highest

    def _raise(self, rows: slice, first: int, scaled: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
        """The highest logit with these columns; keeps its place where that is wanted."""
        before = self.highest[rows]
        if self.best is None:
            return torch.maximum(before, scaled.amax(-1))
        top, index = scaled.max(-1)
        self.best[rows] = torch.where(top > before, index + first, self.best[rows])
        return torch.maximum(before, top)

    def results(self) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None, Float[Tensor, " N"]]:
        """Log-probs, entropies and normalisers."""
        log_total = self.total.log()
        entropy = None if self.weighted is None else log_total - self.weighted / self.total
        return self.chosen - self.highest - log_total, entropy, self.highest + log_total


class _Gradients:
    """Gradients of hidden states, weight and bias, of those that are needed."""

    def __init__(
        self,
        hidden: Float[Tensor, "N H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        needed: tuple[bool, ...],
        raised: torch.dtype,
    ) -> None:
        self._given, self._raised = hidden, raised
        self._hidden = torch.zeros_like(hidden, dtype=raised) if needed[0] else None
        self._weight = torch.empty_like(weight) if needed[1] else None
        self._bias = torch.empty_like(bias) if bias is not None and needed[2] else None

    def begin(self, columns: slice) -> None:
        """With another part of the vocabulary: sums over the blocks of rows are rounded once, by :meth:`end`."""
        self._columns = columns
        self._sums = [
            None if whole is None else torch.zeros_like(whole[columns], dtype=self._raised)
            for whole in (self._weight, self._bias)
        ]

    def add(
        self,
        rows: slice,
        gradient: Float[Tensor, "rows columns"],
        hidden: Float[Tensor, "rows H"],
        weight: Float[Tensor, "columns H"],
    ) -> None:
        """What a tile's ``gradient`` contributes."""
        low, (of_weight, of_bias) = gradient.to(hidden.dtype), self._sums
        if self._hidden is not None:
            _add_product(self._hidden[rows], low, weight)
        if of_weight is not None:
            _add_product(of_weight, low.T, hidden)
        if of_bias is not None:
            of_bias += gradient.sum(0)

    def end(self) -> None:
        for whole, total in zip((self._weight, self._bias), self._sums, strict=True):
            if whole is not None:
                whole[self._columns] = total

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden = None if self._hidden is None else self._hidden.to(self._given.dtype)
        return hidden, self._weight, self._bias


def _add_product(total: Float[Tensor, "n m"], one: Float[Tensor, "n k"], other: Float[Tensor, "k m"]) -> None:
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


class _HeadLogProbs(torch.autograd.Function):
    """[N, H], [V, H], [V], [N] → log-probs [N], entropies [N], likeliest tokens [N]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Float[Tensor, "N H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        ids: Int[Tensor, " N"],
        form: _Form,
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None, Int[Tensor, " N"] | None]:
        low, state, kept = hidden.to(form.dtype), _Rows(ids, form), []
        keeps = len(ids) * len(weight) <= TILE_ELEMENTS and any(ctx.needs_input_grad)
        for columns, blocks in _tiles(hidden, weight):
            part, shift = _columns_of(weight, bias, columns, form.dtype)
            for rows in blocks:
                product = linear(low[rows], part, shift)
                if keeps:
                    kept.append(product.clone())
                state.take(rows, columns.start, form.scaled(product))
        log_probs, entropy, normaliser = state.results()
        ctx.save_for_backward(hidden, weight, bias, ids, normaliser, entropy, *kept)
        ctx.form = form
        constants = (None if form.wanted.entropy_gradient else entropy, state.best)
        ctx.mark_non_differentiable(*(constant for constant in constants if constant is not None))
        return log_probs, entropy, state.best

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *outer: Shaped[Tensor, " N"] | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, normaliser, entropy, *kept = ctx.saved_tensors
        form = ctx.form
        low, sums = hidden.to(form.dtype), _Gradients(hidden, weight, bias, ctx.needs_input_grad, form.raised)
        of_rows = [ids, normaliser, outer[0] * form.step]
        if form.wanted.entropy_gradient:
            of_rows += [entropy, outer[1] * form.step]
        with torch.autocast(weight.device.type, enabled=False):
            for columns, blocks in _tiles(hidden, weight):
                part, shift = _columns_of(weight, bias, columns, form.dtype)
                sums.begin(columns)
                for rows in blocks:
                    product = linear(low[rows], part, shift) if not kept else kept.pop(0).clone()
                    gradient = _gradient(form, product, columns.start, *(each[rows] for each in of_rows))
                    sums.add(rows, gradient, low[rows], part)
                sums.end()
        return (*sums.results(), None, None)


def _gradient(
    form: _Form,
    product: Float[Tensor, "rows columns"],
    first: int,
    ids: Int[Tensor, " rows"],
    normaliser: Float[Tensor, " rows"],
    chosen: Float[Tensor, " rows"],
    entropy: Float[Tensor, " rows"] | None = None,
    undecided: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """The gradient of a tile of the head's product, which is overwritten.

    With outer gradients a (``chosen``) of the log-prob and e (``undecided``) of the entropy H, and p = softmax(x), that
    of x is a · onehot(id) − p · (a + e · (log p + H)).
    """
    scaled = form.scaled(product)
    slope = form.slope(scaled)
    log_probs = scaled.sub_(normaliser[:, None])
    if entropy is None or undecided is None:
        gradient = log_probs.exp_().mul_(-chosen[:, None])
    else:
        probs = log_probs.clamp_(min=FINITE).exp()
        weights = log_probs.add_(entropy[:, None]).mul_(undecided[:, None]).add_(chosen[:, None])
        gradient = weights.mul_(probs).neg_()
    inside, local = _inside(ids, first, gradient.shape[1])
    gradient.scatter_add_(-1, local[:, None], chosen.where(inside, 0.0)[:, None])
    return gradient if slope is None else gradient.mul_(slope)


def _tiles(hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"]) -> Iterator[tuple[slice, list[slice]]]:
    """Parts of the vocabulary, each with the blocks of rows that go over it; neither a tile nor a part of the weight
    has more than TILE_ELEMENTS elements."""
    (count, width), vocab = hidden.shape, len(weight)
    block = max(1, min(count, max(BLOCK, TILE_ELEMENTS // vocab)))
    columns = max(1, TILE_ELEMENTS // max(block, width))
    blocks = [slice(row, min(row + block, count)) for row in range(0, count, block)]
    for column in range(0, vocab, columns):
        yield slice(column, min(column + columns, vocab)), blocks


def _columns_of(
    weight: Float[Tensor, "V H"], bias: Float[Tensor, " V"] | None, columns: slice, dtype: torch.dtype
) -> tuple[Float[Tensor, "columns H"], Float[Tensor, " columns"] | None]:
    return weight[columns].to(dtype), None if bias is None else bias[columns].to(dtype)


def _inside(ids: Int[Tensor, " rows"], first: int, columns: int) -> tuple[Bool[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Which ids lie in the columns from ``first`` on, and where; the others are told to lie somewhere."""
    local = ids - first
    return (local >= 0) & (local < columns), local.clamp(0, columns - 1)
