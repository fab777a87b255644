"""Small models of real architectures, built on the spot, for every test that needs a policy."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    # an activation with parameters, which its constructor sets
    "apertus": {"model_type": "apertus"},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    # layers that lie in what its family calls layers too
    "mamba": {"model_type": "mamba", "state_size": 8},
    # first values that are calculated with the parameters themselves
    "rwkv": {"model_type": "rwkv"},
    # buffers of the layers that the model around them computes
    "falcon_h1": {"model_type": "falcon_h1", "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "head_dim": 8}
    | {"mamba_d_state": 8, "attention_in_multiplier": 0.5, "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]},
    # a scaled embedding, which owns a buffer
    "gemma3_text": {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8},
    # other names on the disk than in memory
    "gpt_neox": {"model_type": "gpt_neox"},
    # the experts of a layer in one tensor, on the disk each by itself
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    # the same, and a bias of the router in a buffer that is saved
    "deepseek_v3": {"model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_key_value_heads": 4}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}


def tiny_config(kind: str = "qwen2", vocab_size: int = 72, **changes: Any) -> dict[str, Any]:
    """An HF config (as the YAML would hold it) of about 30 k parameters."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "vocab_size": vocab_size, "max_position_embeddings": 512}
    return {**sizes, **rest, **SHAPES[kind], **changes}


def nested_config() -> dict[str, Any]:
    """Gemma 3 from 4B on: a language model in a model that can also see; its vocabulary is left out."""
    text = tiny_config("gemma3_text")
    del text["model_type"], text["vocab_size"]
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    return {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}


def tiny_model(kind: str = "qwen2", seed: int = 0, spread: float = 5.0, **changes: Any) -> PreTrainedModel:
    """Float32, eval mode; ``spread`` scales the weights so that next-token distributions are far from uniform."""
    settings = tiny_config(kind, **changes)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    return model.eval()
