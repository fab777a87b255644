"""A policy, its tokenizer and requests for the tests of the vLLM engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from app.engines.engine import Completion, GenerationRequest, SamplingSettings
from tests.models import tiny_model

VOCAB = 72
END = (1, 3)
UNKNOWN = 40
"""The id that a tokenizer may lack."""


def word_tokenizer(unknown: int | None = None) -> PreTrainedTokenizerFast:
    """Token i is the word ``w<i>``, but for an ``unknown`` one; 1 is EOS, 2 pads."""
    words = {f"w{i}": i for i in range(VOCAB) if i != unknown}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2", unk_token="w0")


@dataclass
class Owner:
    """What an engine needs to know of a module."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compute_dtype: torch.dtype = torch.float32


def owner(kind: str = "qwen2", seed: int = 0, **changes: object) -> Owner:
    """A policy whose heads are of 32, the least that vLLM's CPU kernels take."""
    return Owner(tiny_model(kind, seed, **({"hidden_size": 128} | changes)), word_tokenizer())


def request(
    prompt: Sequence[int] = (5, 6, 7), n: int = 4, seed: int = 11, end: tuple[int, ...] = END, **sampling: object
) -> GenerationRequest:
    """A request for up to 16 tokens a completion, unless told otherwise."""
    return GenerationRequest(list(prompt), n, seed, SamplingSettings(**({"max_new_tokens": 16} | sampling)), end)


@torch.no_grad()
def processed_log_probs(policy: PreTrainedModel, asked: GenerationRequest, ids: Sequence[int]) -> torch.Tensor:
    """[T, V] log-probs of the distributions that a completion's tokens are drawn from, by a plain forward."""
    row = torch.tensor([[*asked.prompt_ids, *ids]])
    logits = policy(row).logits[0, len(asked.prompt_ids) - 1 : -1].float()
    sampling = asked.sampling
    logits = logits / (sampling.temperature or 1.0)
    if sampling.forbid_unknown_tokens:
        logits[:, UNKNOWN] = -torch.inf
    ranked, order = logits.sort(dim=-1, descending=True)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = -torch.inf
    probabilities = ranked.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    ranked = ranked.masked_fill(before >= sampling.top_p, -torch.inf)
    ranked = ranked.masked_fill(probabilities < sampling.min_p * probabilities[:, :1], -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ranked).log_softmax(-1)


def worst_difference(policy: PreTrainedModel, asked: GenerationRequest, completions: Sequence[Completion]) -> float:
    """Largest |log-prob of the engine − log-prob of a plain forward| over all tokens of the completions."""
    worst = 0.0
    for completion in completions:
        ids = torch.tensor(completion.token_ids)
        exact = processed_log_probs(policy, asked, completion.token_ids).gather(-1, ids[:, None])[:, 0]
        worst = max(worst, float((exact - torch.tensor(completion.log_probs)).abs().max()))
    return worst


def perturb(policy: PreTrainedModel, scale: float = 0.3, seed: int = 1) -> None:
    """Another policy in the same tensors, as an optimiser step leaves it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * parameter.std().nan_to_num(0.1) * torch.randn(parameter.shape, generator=generator))
