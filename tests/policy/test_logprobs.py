"""Token log-probs and entropies against one row at a time, in plain torch."""

import pytest
import torch

from app.errors import ConfigurationError
from app.policy import logprobs
from app.policy.logprobs import entropy_of, log_softmax_and_entropy, selective_log_softmax, token_log_probs
from app.policy.packing import build
from tests.models import tiny_model

PROMPTS = [[5], [6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17]]
COMPLETIONS = [[20, 21, 22, 0, 23], [24], [25, 26, 27, 28, 29, 30, 31, 32], [0, 0, 33]]


def one_row(model, prompt, completion, temperature):
    """Log-probs and entropies of a row that was never padded, in float64 from the model's logits on."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    rows = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    return rows[range(len(completion)), completion], -(rows.exp() * rows).sum(-1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_padding_changes_nothing(kind, temperature):
    model = tiny_model(kind)
    statistics = token_log_probs(model, build(PROMPTS, COMPLETIONS, 0), temperature, with_entropy=True)
    assert statistics.log_probs.dtype == torch.float32
    assert statistics.entropy is not None
    assert not statistics.entropy.requires_grad
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        log_probs, entropy = one_row(model, prompt, completion, temperature)
        real = len(completion)
        torch.testing.assert_close(statistics.log_probs[row, :real].double(), log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(statistics.entropy[row, :real].double(), entropy, atol=1e-5, rtol=0)
        assert statistics.log_probs[row, real:].eq(0).all()
        assert statistics.entropy[row, real:].eq(0).all()


def test_gradients_are_those_of_the_rows_alone():
    weights = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded, alone = tiny_model().double(), tiny_model().double()
    batch = build(PROMPTS, COMPLETIONS, 0)
    (token_log_probs(padded, batch, 0.8).log_probs * weights).sum().backward()
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        (one_row(alone, prompt, completion, 0.8)[0] * weights[row, : len(completion)]).sum().backward()
    for (name, one), (_, other) in zip(padded.named_parameters(), alone.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-8, rtol=1e-8, msg=name)


def test_a_selection_of_rows_has_the_same_log_probs():
    model, batch = tiny_model(), build(PROMPTS, COMPLETIONS, 0)
    with torch.no_grad():
        whole = token_log_probs(model, batch).log_probs
        part = token_log_probs(model, batch.select([3, 1])).log_probs
    torch.testing.assert_close(part, whole[[3, 1], : part.shape[1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 20, 2**22])
def test_selective_log_softmax_and_its_gradient_in_any_chunks(monkeypatch, chunk):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (2, 3), generator=generator)
    plain = (logits / 0.7).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(selective_log_softmax(logits, ids, 0.7), plain)
    assert torch.autograd.gradcheck(lambda x: selective_log_softmax(x, ids, 0.7), (logits,))
    entropy = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    torch.testing.assert_close(entropy_of(logits, 0.7), entropy)


@pytest.mark.parametrize("chunk", [1, 7, 20, 2**22])
def test_log_softmax_and_entropy_share_one_gradient_in_any_chunks(monkeypatch, chunk):
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (2, 3), generator=generator)
    chosen, entropy = log_softmax_and_entropy(logits, ids, 0.7)
    torch.testing.assert_close(chosen, selective_log_softmax(logits, ids, 0.7))
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits / 0.7).entropy())
    assert torch.autograd.gradcheck(lambda x: log_softmax_and_entropy(x, ids, 0.7), (logits,))


def test_removed_tokens_have_no_entropy_and_no_gradient():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    torch.testing.assert_close(entropy_of(logits), torch.tensor([[2.0]]).log())
    chosen, entropy = log_softmax_and_entropy(logits, torch.tensor([[0]]))
    torch.testing.assert_close(entropy.detach(), torch.tensor([[2.0]]).log())
    (chosen + 1e6 * entropy).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.5, -0.5, 0.0]]]))


def test_an_entropy_with_gradient_is_the_one_without():
    model, batch = tiny_model().double(), build(PROMPTS, COMPLETIONS, 0)
    logged = token_log_probs(model, batch, 0.8, with_entropy=True)
    trained = token_log_probs(model, batch, 0.8, entropy_gradient=True)
    torch.testing.assert_close(trained.entropy.detach(), logged.entropy)
    torch.testing.assert_close(trained.log_probs, logged.log_probs)
    trained.entropy.sum().backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    sum(one_row(model, *row, 0.8)[1].sum() for row in zip(PROMPTS, COMPLETIONS, strict=True)).backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad)


def test_bfloat16_models_give_float32_and_bfloat16_gradients():
    model = tiny_model(spread=1.0).bfloat16()
    statistics = token_log_probs(model, build(PROMPTS, COMPLETIONS, 0), with_entropy=True)
    assert statistics.log_probs.dtype == statistics.entropy.dtype == torch.float32
    statistics.log_probs.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16
    assert model.lm_head.weight.grad.isfinite().all()


def test_train_mode_and_gradient_checkpointing_give_the_same_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        token_log_probs(model, build(PROMPTS, COMPLETIONS, 0)).log_probs.sum().backward()
        assert model.training
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_decoding_has_no_log_probs(temperature):
    with pytest.raises(ConfigurationError, match="positive temperature"):
        token_log_probs(tiny_model(), build(PROMPTS, COMPLETIONS, 0), temperature)
