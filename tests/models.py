"""Small models of real architectures, built on the spot, for every test that needs a policy."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
}


def tiny_config(kind: str = "qwen2", vocab_size: int = 72, **changes: Any) -> dict[str, Any]:
    """An HF config (as the YAML would hold it) of about 30 k parameters."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "vocab_size": vocab_size, "max_position_embeddings": 512}
    return {**SHAPES[kind], **sizes, **rest, **changes}


def tiny_model(kind: str = "qwen2", seed: int = 0, spread: float = 5.0, **changes: Any) -> PreTrainedModel:
    """Float32, eval mode; ``spread`` scales the weights so that next-token distributions are far from uniform."""
    settings = tiny_config(kind, **changes)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    return model.eval()
