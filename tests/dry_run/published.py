"""Parameter counts that were published, with the configurations they are of."""

from typing import Any

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "qwen2.5-1.5b": (
        1_543_714_304,
        {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "qwen2.5-7b": (
        7_615_616_512,
        {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    ),
}
