"""Weights on the way to an engine, against what transformers itself writes into a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.engines.weight_names import checkpoint_weights, transposed_names
from app.engines.weight_sync import SyncRecord, WeightSyncError
from tests.families import family_policy

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"]


@pytest.mark.parametrize("kind", [*FAMILIES, "hrm_text"])
def test_names_and_layouts_are_those_of_checkpoints(kind: str, tmp_path: Path) -> None:
    policy = family_policy(kind)
    policy.save_pretrained(tmp_path)
    saved = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
    sent = dict(checkpoint_weights(policy))
    tied = set(sent) - set(saved)  # a head that is tied comes once more, under its own name
    assert set(saved) <= set(sent)
    assert tied <= {"lm_head.weight", "embed_out.weight"}
    assert all(torch.equal(sent[name], value) for name, value in saved.items())


def record(weights: dict[str, torch.Tensor], **changes: object) -> SyncRecord:
    kept = SyncRecord(torch.float32, 0, **changes)
    assert dict(kept.watch(iter(weights.items()))) == weights
    return kept


def test_weights_that_an_engine_turns_round_are_compared_as_it_holds_them() -> None:
    weight = torch.randn(5, 8)
    names = transposed_names(family_policy("gpt2"))
    assert "transformer.h.1.mlp.c_fc.weight" in names
    assert not any("wte" in name for name in names)
    turned = record({"fc": weight}, transposed=frozenset({"fc"}))
    plain = record({"fc": weight.T.contiguous()})
    assert (turned.sent, turned.widths) == (plain.sent, plain.widths)


def test_nothing_advises_to_switch_the_proof_off() -> None:
    assert "verify_weights" not in str(WeightSyncError(["embed"], []))
