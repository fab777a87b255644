"""The dry run that ``docs/large_models.md`` shows is what the program prints."""

import json
from pathlib import Path

import pytest

from app.cli.main import main
from tests.command_line import ROOT
from tests.docs.pages import Page
from tests.dry_run.published import PUBLISHED

FILES = ("recipes/base_rl", "recipes/method/grpo_lambda_trace_both", "recipes/data/math12k", "strategy/fsdp2")


def test_the_dry_run_of_a_7b_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = [
        content for _, content in Page(ROOT / "docs" / "large_models.md").blocks if content.startswith("model\n")
    ]
    shape = PUBLISHED["qwen2.5-7b"][1] | {"max_position_embeddings": 131072}
    policy = {"config": shape, "tokenizer": {"kind": "synthetic"}}
    own = {
        "model": {"init_args": {"policy": policy, "micro_batch_size": 4}},
        "rollouts": {"sampling": {"max_new_tokens": 768}},
    }
    file = tmp_path / "7b.json"
    file.write_text(json.dumps(own))
    stack = [word for name in FILES for word in ("--config", f"configs/{name}.yaml")]
    devices = ["--trainer.accelerator", "gpu", "--trainer.devices", "8"]
    assert main(["fit", *stack, "--config", str(file), *devices, "--dry_run"]) == 0
    assert shown in capsys.readouterr().out
