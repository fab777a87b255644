"""Log-probs and entropies from hidden states against log_softmax over whole logits, in values, gradients and memory."""

import pytest
import torch
from torch import Tensor

from app.policy import head_log_probs as tiles
from app.policy.head_log_probs import FlatStatistics, OutputHead, Wanted, head_log_probs
from benchmarks.allocations import Allocated

HEADS = {"plain": OutputHead(), "scaled": OutputHead(0.3), "capped": OutputHead(1.5, 2.0)}
BOTH = Wanted(0.7, entropy_gradient=True, best=True)


class Given:
    """N tokens, their hidden states and a head, all of which take gradients."""

    def __init__(self, dtype: torch.dtype = torch.float64, tokens: int = 9, vocab: int = 23, hidden: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        self.tensors = drawn(tokens, hidden), drawn(vocab, hidden), drawn(vocab)
        self.ids = torch.randint(vocab, (tokens,), generator=generator)
        self.outer = torch.randn(2, tokens, generator=generator, dtype=torch.float64)

    def plain(self, head: OutputHead, temperature: float) -> FlatStatistics:
        product = torch.nn.functional.linear(*self.tensors)
        raised = product.to(torch.promote_types(product.dtype, torch.float32))
        log_probs = (head.logits(raised) / temperature).log_softmax(-1)
        chosen = log_probs.gather(-1, self.ids[:, None])[:, 0]
        return FlatStatistics(chosen, -(log_probs.exp() * log_probs).sum(-1), log_probs.argmax(-1))

    def gradients(self, found: FlatStatistics) -> list[Tensor]:
        loss = (found.log_probs * self.outer[0]).sum()
        if found.entropy is not None and found.entropy.requires_grad:
            loss = loss + (found.entropy * self.outer[1]).sum()
        return [gradient.double() for gradient in torch.autograd.grad(loss, self.tensors)]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize(("elements", "block"), [(2**22, 2048), (40, 4), (7, 3), (1, 1)])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_it_is_log_softmax_in_any_tiles(
    head: OutputHead, elements: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(tiles, "BLOCK", block)
    given = Given()
    wanted, found = given.plain(head, 0.7), head_log_probs(*given.tensors, given.ids, head, BOTH)
    torch.testing.assert_close(vars(found), vars(wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(given.gradients(found), given.gradients(wanted), rtol=1e-11, atol=1e-12)

    logged = head_log_probs(*given.tensors, given.ids, head, Wanted(0.7, entropy=True))
    assert logged.entropy is not None
    assert not logged.entropy.requires_grad
    assert logged.best is None
    torch.testing.assert_close(logged.entropy, found.entropy)
    alone = FlatStatistics(given.plain(head, 0.7).log_probs)
    torch.testing.assert_close(given.gradients(logged), given.gradients(alone), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "autocast"])
def test_low_precision_is_that_of_the_product_alone(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are as near to those of float64 as those that torch's own kernels make of whole bfloat16 logits."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 2**11)
    monkeypatch.setattr(tiles, "BLOCK", 32)
    low, exact = Given(torch.float32 if mixed else torch.bfloat16, 128, 512, 48), Given(torch.float64, 128, 512, 48)
    with torch.no_grad():
        for tensor, same in zip(exact.tensors, low.tensors, strict=True):
            tensor.copy_(same.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        plain, found = low.plain(OutputHead(), 1.3), head_log_probs(*low.tensors, low.ids, wanted=Wanted(1.3))
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=1e-5, atol=1e-5)
    truth = exact.gradients(FlatStatistics(exact.plain(OutputHead(), 1.3).log_probs))
    torchs, own = low.gradients(FlatStatistics(plain.log_probs)), low.gradients(found)
    for wanted, theirs, ours in zip(truth, torchs, own, strict=True):
        assert relative(ours, wanted) < 1.1 * relative(theirs, wanted) < 0.02


def test_float32_is_plain_to_rounding() -> None:
    given = Given(torch.float32, 64, 3000, 48)
    wanted, found = given.plain(HEADS["scaled"], 0.7), head_log_probs(*given.tensors, given.ids, HEADS["scaled"], BOTH)
    torch.testing.assert_close(vars(found), vars(wanted), rtol=0, atol=1e-5)
    for ours, theirs in zip(given.gradients(found), given.gradients(wanted), strict=True):
        assert relative(ours, theirs) < 1e-5


def test_removed_tokens_have_no_entropy_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(tiles, "BLOCK", 1)
    hidden, weight = torch.zeros(1, 1, requires_grad=True), torch.zeros(3, 1)
    bias = torch.tensor([-torch.inf, 0.0, 0.0], requires_grad=True)
    found = head_log_probs(hidden, weight, bias, torch.tensor([1]), wanted=Wanted(entropy_gradient=True))
    torch.testing.assert_close(found.entropy.detach(), torch.tensor([2.0]).log())
    (found.log_probs + 1e6 * found.entropy).sum().backward()
    torch.testing.assert_close(bias.grad, torch.tensor([0.0, 0.5, -0.5]), atol=0.1, rtol=0)


def test_no_tokens_have_gradients_of_zero() -> None:
    given = Given(tokens=0)
    found = head_log_probs(*given.tensors, given.ids, wanted=BOTH)
    assert found.log_probs.shape == found.best.shape == (0,)
    assert all(gradient.eq(0).all() for gradient in given.gradients(found))


def test_only_what_takes_a_gradient_gets_one() -> None:
    given = Given()
    hidden, weight, bias = given.tensors
    found = head_log_probs(hidden, weight.detach(), bias.detach(), given.ids)
    (gradient,) = torch.autograd.grad(found.log_probs.sum(), hidden)
    (wanted,) = torch.autograd.grad(given.plain(OutputHead(), 1.0).log_probs.sum(), hidden)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_vocabulary(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the gradients: tiles, a few numbers a token, and the hidden states' gradient in float32."""
    elements, tokens, vocab, width = 2**13, 400, 2000, 16
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(tiles, "BLOCK", 128)
    given = Given(dtype, tokens, vocab, width)
    with Allocated([*given.tensors, given.ids, given.outer]) as made:
        found = head_log_probs(*given.tensors, given.ids, HEADS["capped"], BOTH)
        gradients = torch.autograd.grad(found.log_probs.sum() + found.entropy.sum(), given.tensors)
    own = sum(gradient.nbytes for gradient in gradients)
    a_token = tokens * (4 * width + 20 * 8)
    assert made.largest == gradients[1].nbytes
    assert made.peak - own < tiles.TILES * 4 * elements + a_token < tokens * vocab / 2  # half a byte a logit
