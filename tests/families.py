"""Small policies of any family, and owners of them, for tests that hold families against each other."""

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer
from benchmarks.family_configs import small_config
from tests.engines.vllm.support import Owner

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
COMPLETIONS = [[20, 21, 22], [23, 24, 25, 26, 27], [28, 29]]


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(PolicySettings(config={"model_type": "llama"}, tokenizer=NewTokenizerSettings()))


def family_settings(kind: str, **changes: object) -> PolicySettings:
    config = small_config(kind, len(tokenizer())) | changes
    return PolicySettings(config=config, tokenizer=NewTokenizerSettings())


def family_policy(kind: str, **changes: object) -> PreTrainedModel:
    """A policy whose next-token distributions are far from uniform."""
    config = AutoConfig.for_model(**(small_config(kind, len(tokenizer())) | changes))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # a family's own lie outside so small a vocabulary
        setattr(config.get_text_config(), name, 1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        policy = AutoModelForCausalLM.from_config(config).eval()
        for parameter in policy.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.05:
                parameter.mul_(10)
    return policy


def owner_of(policy: PreTrainedModel) -> Owner:
    return Owner(policy, tokenizer(), compute_dtype=policy.dtype)


@torch.no_grad()
def log_probs_alone(policy: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """[T] of the completion's tokens, by transformers alone: no padding, no mask, no cache."""
    row = torch.tensor([[*prompt, *completion]])
    every = policy(input_ids=row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return every.gather(-1, row[0, 1:, None])[len(prompt) - 1 :, 0]
