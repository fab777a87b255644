"""Runs whose rows are packed, against the same runs with padded rows."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.engine import SamplingSettings
from app.policy.lora import LoraSettings
from app.policy.packing_probe import PackingProbe
from app.policy.shared_prompts import packs_rows
from app.rollout.update_plan import UpdateSettings
from tests.modules.test_grpo_lambda import Recorder
from tests.running import fit, make_data, make_module, make_rollouts, policy_settings, reward, weights_of

VARIANTS: dict[str, dict[str, Any]] = {
    "rows": {"micro_batch_size": 3},
    "tokens": {"micro_batch_tokens": 90, "updates": UpdateSettings(2, 2)},
    "tied groups, KL": {"micro_batch_size": 5, "objective": {"beta": 0.1}},
    "tied groups left out": {"micro_batch_size": 5},
    "adapters": {"lora": LoraSettings(r=4), "objective": {"beta": 0.1, "entropy_bonus": 0.01}},
    "checkpointing": {"gradient_checkpointing": True},
}


def run(folder: Path, name: str) -> tuple[Recorder, Any]:
    given = dict(VARIANTS[name])
    changes = {key: given.pop(key) for key in ("lora", "gradient_checkpointing") if key in given}
    module = make_module(given.pop("objective", None), policy=replace(policy_settings(), **changes), **given)
    recorder = Recorder()
    score = reward("half_tied" if "tied" in name else "digit_share")
    rollouts = make_rollouts(rewards=[score], sampling=SamplingSettings(max_new_tokens=12))
    fit(folder, module, make_data(iterations=2), [rollouts, recorder])
    return recorder, module


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_is_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed, one = run(tmp_path / "packed", name)
    assert packs_rows(one.policy)
    monkeypatch.setattr(PackingProbe, "try_on", lambda *_: "of this test")
    with caplog.at_level(logging.INFO):
        padded, other = run(tmp_path / "padded", name)
    assert "llama (LlamaForCausalLM): every row computes its own prompt, beside padding: of this test" in caplog.text
    for row in packed.metrics:
        assert row["policy/updates/padding_share"] == 0
        assert row["policy/updates/shared_token_share"] > 0.2
    assert all(row["policy/updates/shared_token_share"] == 0 for row in padded.metrics)
    assert max(row["policy/updates/padding_share"] for row in padded.metrics) > 0 or name == "tokens"
    for first, second in zip(packed.metrics, padded.metrics, strict=True):
        for metric in ("policy/loss", "grad_norm", "entropy"):
            assert first[metric] == pytest.approx(second[metric], rel=1e-4, abs=1e-5)
    for weight, wanted in zip(weights_of(one).values(), weights_of(other).values(), strict=True):
        torch.testing.assert_close(weight, wanted, atol=2e-5, rtol=0)
