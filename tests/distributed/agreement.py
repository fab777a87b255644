"""The training that every strategy is put to, and what it means that two of them agree."""

from typing import Any

import pytest
import torch

from tests.distributed.launch import untimed

JOB: dict[str, Any] = {
    "objective": {"beta": 0.1, "lam": 0.9, "reduction": "token"},
    "module": {
        "advantages": {"scale": "batch", "clamp_negative": None},
        "updates": {"per_rollout": 2, "mini_batches": 2},
        "micro_batch_size": 3,
    },
    "optimizer": {"weight_decay": 0.1, "max_grad_norm": 0.5},
    "max_new_tokens": 16,
}
SAVED = "checkpoints/iteration-000002.ckpt"
LORA = {"lora": {"r": 4, "alpha": 8.0}}
UNEVEN_ROWS = {"config": {"intermediate_size": 63}}
"""The second of two ranks has a row less of some matrices."""
TIED = {"kind": "qwen2", **UNEVEN_ROWS}
UNEVEN = {
    "reward": "tests.distributed.job:tied_on_rank_one",
    "module": {"micro_batch_size": 3},
    "max_new_tokens": 300,
    "iterations": 2,
    "evaluate": True,
}
HALF_TIED = {
    "objective": {"beta": 0.0, "lam": 0.9},
    "reward": "tests.running:half_tied",
    "max_new_tokens": 40,
}
"""Some rows of each rank have no gradient, and not as many of one as of the other."""
ENTROPY = {
    "objective": {"lam": 0.9, "entropy_bonus": 0.05, "top_entropy_share": 0.4},
    "reward": "tests.running:half_tied",
    "iterations": 2,
}
"""What counts is decided by the tokens of all ranks, and rows without an advantage have a gradient."""
LOW = {"objective": {"beta": 0.1}, "module": {}, "iterations": 1}


def agree(one: dict[str, Any], other: dict[str, Any], first: int = 0) -> None:
    """``other`` saw and learned what ``one`` did from iteration ``first`` on."""
    assert len(other["metrics"]) == len(one["metrics"]) - first
    for mine, theirs in zip(one["metrics"][first:], other["metrics"], strict=True):
        names = untimed(mine).keys() & theirs.keys()
        assert {"policy/loss", "grad_norm", "reward"} | ({"kl"} & mine.keys()) <= names
        assert {name: theirs[name] for name in names} == pytest.approx(
            {name: mine[name] for name in names}, rel=1e-4, abs=2e-5
        )
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=2e-6)


def computes_low_and_keeps_float32(low: dict[str, Any]) -> None:
    """Generation, old log-probs and update were all in bfloat16: the first update sees no ratio but 1."""
    assert low["master_dtypes"] == low["dtypes"] == {torch.float32}
    assert low["logits"] == {torch.bfloat16}
    assert not low["autocast"]
    assert low["metrics"][0]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert low["metrics"][0]["grad_norm"] > 0
