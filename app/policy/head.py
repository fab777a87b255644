"""A causal language model taken apart: the head that turns its last hidden states into logits, and what comes after it.

While log-probs are computed, the head's own ``forward`` is replaced, so that the model is called as ever and its weight
is whole and takes gradients wherever it lies: FSDP gathers it in the model's forward pass alone, and its hooks see what
the model returns. What a family does after its head (scaling, soft-capping) is not looked up by name but measured, by a
head that returns known numbers, so that a family that nobody has heard of is either right or falls back to logits.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from app.policy.head_log_probs import OutputHead
from app.policy.sharding.wrapping import called_model, inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD = "output_head"
"""Attribute of a model that holds its :class:`OutputHead`, or why there is none; not there before anyone has looked."""
FAR = 2.0**20
"""Beyond every soft cap."""


class NotApart(Exception):
    """Why log-probs of a model need its logits."""


def output_head(model: Any) -> OutputHead | None:
    """How log-probs of ``model`` come from its hidden states; None where they need logits."""
    found = getattr(model, HEAD, None)
    return found if isinstance(found, OutputHead) else None


def why_logits(model: Any) -> str | None:
    """Why log-probs of ``model`` were found to need its logits; None where they do not, or where nobody has looked."""
    found = getattr(model, HEAD, None)
    return found if isinstance(found, str) else None


def check_head(model: Any) -> None:
    """Refuses a head that makes something else than a product with its weights.

    Raises:
        NotApart: it does.
    """
    head = inner_model(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # adapters and quantised weights are subclasses, or wrap it
        raise NotApart(f"its output head is no plain linear layer but {type(head).__name__}")
    if "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks:
        raise NotApart("something is hooked onto its output head")


def is_plain_head(model: Any) -> bool:
    """Whether the output head makes a product with its weights, and nothing else."""
    try:
        check_head(model)
    except NotApart:
        return False
    return True


@contextlib.contextmanager
def replaced_head(model: Any, compute: Callable[[torch.nn.Linear, Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model's head returns ``compute(head, hidden states [B, S, H])``, wherever the model is called."""
    head = cast("torch.nn.Linear", inner_model(model).get_output_embeddings())
    head.forward = lambda hidden: compute(head, hidden)
    try:
        yield
    finally:
        del head.forward


@contextlib.contextmanager
def returning(model: Any, made: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, ``made()`` is what the model returns as its logits.

    The hook comes before those of a sharded model, which gathers weights again for the backward pass of what it
    returns.
    """

    def put(_: torch.nn.Module, __: Any, output: Any) -> Any:
        output.logits = made()
        return output

    handle = called_model(model).register_forward_hook(put, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def take_apart(model: "PreTrainedModel", ids: Tensor) -> OutputHead:
    """What ``model`` makes of its head's product, found by giving it numbers in the product's place. Collective.

    Args:
        model: in any wrapping.
        ids: [1, L] some tokens.

    Raises:
        NotApart: it is neither scaled nor soft-capped, number by number, or the head is not called once.
    """
    check_head(model)
    given: list[Tensor] = []

    def numbers(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        given.append(_numbers(head.out_features, hidden.device).expand(*hidden.shape[:-1], -1))
        return given[-1].clone()  # some families write into their logits

    with replaced_head(model, numbers):
        made = model(input_ids=ids, use_cache=False).logits
    if len(given) != 1 or made.shape != given[0].shape:
        raise NotApart(f"its output head is called {len(given)} times, or its results are cut")
    head = _fitted(float(made[0, 0, 0]), float(made[0, 0, -1]))
    wanted = head.logits(given[0])
    if not torch.allclose(made.to(wanted.dtype), wanted, rtol=1e-5, atol=1e-5):
        raise NotApart("its logits are more than its output head's product, scaled or soft-capped")
    return head


def _numbers(count: int, device: torch.device) -> Tensor:
    """1, -2, 3, -4 … up to 127 and anew, which every dtype holds exactly; the last is :data:`FAR`."""
    values = torch.arange(count, dtype=torch.float64, device=device) % 127 + 1
    values[1::2] *= -1
    values[-1] = FAR
    return values


def _fitted(one: float, far: float) -> OutputHead:
    """From what became of 1 and of :data:`FAR`."""
    if math.isclose(far, one * FAR, rel_tol=1e-3):
        return OutputHead(_rounded(one))
    share = one / far if far else math.inf
    if not -1 < share < 1:
        raise NotApart("its logits do not grow with its output head's product")
    return OutputHead(_rounded(far * math.atanh(share)), far)


def _rounded(scale: float) -> float:
    """Without the last digits, if they are those of a calculation with 1."""
    return 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
