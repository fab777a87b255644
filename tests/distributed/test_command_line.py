"""Two processes from the command line: started by torchrun, and by Lightning itself."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.policy.checkpoints import read_weights
from tests.distributed.launch import run_command, run_ranks
from tests.models import tiny_config

pytestmark = pytest.mark.slow


def configuration(folder: Path, stage: str) -> list[str]:
    """The arguments of a small run of two iterations on two CPU ranks."""
    model = tiny_config("llama", initializer_range=0.3)
    del model["vocab_size"]
    policy = {"config": model, "tokenizer": {"kind": "synthetic"}}
    source = {"class_path": "SyntheticSource"}
    benchmarks = {"heldout": {"source": {**source, "init_args": {"split": "heldout", "size": 3}}}}
    data: dict[str, object] = {"train": source, "iterations": 2, "benchmarks": benchmarks}
    if stage == "sft":
        data |= {"batch_size": 4, "train": {**source, "init_args": {"demonstrations": True}}}
        content = {"model": "SFTModule", "data": "SFTDataModule"}
    else:
        data |= {"prompts_per_iteration": 4}
        content = {"model": "GRPOLambdaModule", "data": "MathPromptDataModule"}
    written = {
        "model": {"class_path": content["model"], "init_args": {"policy": policy}},
        "data": {"class_path": content["data"], "init_args": data},
        "evaluation": {"sampling": {"temperature": 0, "max_new_tokens": 8}},
        "checkpoint": {"every_n_iterations": 2, "folder": str(folder / "checkpoints")},
        "export": {"folder": str(folder / "hf")},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder), "val_check_interval": 2},
    }
    if stage != "sft":
        written["rollouts"] = {"group_size": 2, "sampling": {"max_new_tokens": 8}}
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    return ["main.py", "fit", "--config", str(folder / "run.yaml")]


def test_torchrun_trains_and_evaluates_in_shards(tmp_path: Path) -> None:
    strategy = ["--config", "configs/strategy/fsdp2.yaml", "--trainer.devices", "2"]
    run_ranks([*configuration(tmp_path, "rl"), *strategy, "--trainer.precision", "bf16-true"], 2)
    saved = tmp_path / "checkpoints/iteration-000002.ckpt"
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in saved.iterdir()}  # each rank wrote its part
    exported = load_file(tmp_path / "hf/model.safetensors")
    trained = read_weights(str(saved))
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["ddp", "fsdp2_offload"])
def test_lightning_starts_its_own_ranks(tmp_path: Path, name: str) -> None:
    strategy = ["--config", f"configs/strategy/{name}.yaml", "--trainer.devices", "2"]
    if name == "fsdp2_offload":  # the file's backends are those of GPUs
        strategy += ["--trainer.strategy.init_args.process_group_backend", "gloo"]
    output = run_command([sys.executable, *configuration(tmp_path, "sft"), *strategy])
    assert "MEMBER: 2/2" in output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.architectures == ["LlamaForCausalLM"]
