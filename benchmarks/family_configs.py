"""Small configurations of the families of causal language models that transformers knows.

A family's own defaults are made small: sizes by the names that configurations share, lists with an entry a layer by
leaving out layers of a kind that is there already. What a family needs beside that stands in ``SPECIAL``.
"""

from typing import Any

COMMON = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "gemma", "gemma2", "gemma3_text", "mixtral"),
    *("qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4", "glm4_moe", "olmo2", "smollm3", "gpt_oss", "cohere2"),
    *("stablelm", "gpt2", "gpt_neox", "falcon", "mamba2", "bloom", "opt"),
)
"""The families that users bring most."""

CONTEXT, WINDOW = 256, 8
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers", "encoder_layers")
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_dim", "emb_dim", "word_embed_proj_dim"), 128
    ),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "output_embedding_size", "lru_width"), 128),
    **dict.fromkeys((*LAYERS, "num_decoder_layers", "num_encoder_layers", "num_layers_per_stack"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "n_head_kv"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "global_head_dim", "v_head_dim", "kv_channels", "dim_head"), 32),
    **dict.fromkeys(("d_head", "d_kv", "attention_head_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_inner", "dff", "dim_ff"), 192),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dense_intermediate_size", "intermediate_size_mlp"), 192),
    **dict.fromkeys(("feed_forward_size",), 192),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 64),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), CONTEXT),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "model_max_length"), CONTEXT),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), WINDOW),
    "hidden_size_per_layer_input": 16,
    "initializer_range": 0.2,
    "init_std": 0.2,
}
MLA: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 4}
"""Latent attention: its heads are sized by the ranks above."""
HEADS: dict[str, Any] = {"head_dim": 32, "num_key_value_heads": 2}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 8}
LINEAR: dict[str, Any] = {
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
}
HYBRID = ["linear_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_linear", "longcat_flash"), MLA),
    **dict.fromkeys(("minicpm3", "youtu"), MLA),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa"), MLA | {"index_n_heads": 2, "index_head_dim": 32}),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "nemotron"), HEADS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"), LINEAR),
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 256},
    "granitemoehybrid": MAMBA | {"layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16, "mamba_dt_rank": 8},
    "mamba2": {"num_heads": 8, "head_dim": 32, "n_groups": 2, "state_size": 16, "chunk_size": 8, "time_step_rank": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2, "ssm_state_size": 16} | {"chunk_size": 8},
    "zamba2": {"mamba_headdim": 32, "chunk_size": 8, "attention_head_dim": 64, "attention_hidden_size": 256},
    "xlstm": {"chunk_size": 8},
    "kimi_linear": MLA | {"linear_head_dim": 32, "linear_num_heads": 2, "head_dim": None},
    "deepseek_v2": MLA | {"num_experts_per_tok": 2},
    "codegen": {"rotary_dim": 16},
    "gptj": {"rotary_dim": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
}
"""By ``model_type``; null leaves a name to the family."""


def small_config(kind: str, vocabulary: int) -> dict[str, Any]:
    """``policy.config`` of a small model of the family ``kind``.

    Args:
        kind: a ``model_type``.
        vocabulary: number of tokens.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = CONFIG_MAPPING[kind]
    return {"model_type": kind, **_small(family(), vocabulary)}


def _small(config: Any, vocabulary: int) -> dict[str, Any]:
    entries = config.to_dict()
    found = {name: SIZES[name] for name, value in entries.items() if name in SIZES and value is not None}
    found |= _fewer_layers(entries)
    for name, value in entries.items():
        part: Any = vars(config).get(name)
        if isinstance(value, dict) and hasattr(part, "model_type"):
            found[name] = {"model_type": part.model_type, **_small(part, vocabulary)}
        elif name in ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size") and isinstance(value, int):
            found[name] = vocabulary
    special = SPECIAL.get(config.model_type, {})
    return {name: value for name, value in (found | special).items() if value is not None}


def _fewer_layers(entries: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry a layer, cut to layers that differ, and as many layers; two at least."""
    names = [name for name in LAYERS if isinstance(entries.get(name), int)]
    if not names:
        return {}
    count = entries[names[0]]
    lists = {name: value for name, value in entries.items() if isinstance(value, list) and len(value) == count}
    kinds = list(zip(*lists.values(), strict=True)) or [()] * count
    kept = [layer for layer, kind in enumerate(kinds) if kind not in kinds[:layer]]
    kept = sorted((kept + [layer for layer in range(count) if layer not in kept])[: max(2, len(kept))])
    cut: dict[str, Any] = {name: [value[layer] for layer in kept] for name, value in lists.items()}
    return {**cut, **dict.fromkeys(names, len(kept))}
