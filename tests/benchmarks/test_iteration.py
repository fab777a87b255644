"""The benchmark of a whole iteration: its count of operations, and the figures that it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.iteration import Flops
from tests.models import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_flops_are_those_that_torch_counts(kind: str) -> None:
    """torch counts attention as if every token saw all of them; causal attention, as is usual, counts half of it."""
    config = AutoConfig.for_model(**tiny_config(kind))
    tokens, predicted = 24, 7
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # torch knows no other on CPUs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones((1, tokens), dtype=torch.long), logits_to_keep=predicted)
    flops = Flops.of(config)
    whole_attention = flops.forward(tokens, predicted) + 2 * flops.attention * tokens**2
    assert whole_attention == counter.get_total_flops()
    assert flops.training([(24, 7), (20, 5)]) == 3 * (flops.forward(24, 7) + flops.forward(20, 5))
    assert flops.training([(24, 7), (20, 3)], [17]) == flops.training([(24, 7), (20, 3)]) - 3 * flops.forward(17, 0)


def test_it_runs_fit_and_writes_what_an_iteration_cost(tmp_path: Path) -> None:
    own = ["--shape", "tiny", "--prompts", "2", "--group", "4", "--prompt-tokens", "9", "--new-tokens", "6"]
    own += ["--iterations", "2", "--folder", str(tmp_path), "--json", str(tmp_path / "figures" / "cpu.json")]
    command = [sys.executable, "-m", "benchmarks.iteration", *own, "--", "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "figures" / "cpu.json").read_text())
    (warm,) = written["iterations"][1:]
    assert 8 * (9 + 1) <= warm["tokens"] == 8 * 9 + warm["completion_tokens"] <= 8 * (9 + 6)
    # two groups of four: three of each have their prompt computed, and a completion's last token predicts nothing
    assert warm["shared_tokens"] == 6 * 9
    assert warm["computed_tokens"] == warm["tokens"] - 6 * 9 - 8
    assert warm["padding_tokens"] == 0
    phases = [warm[f"time/{name}"] for name in ("sync", "generate", "grade", "log_probs", "train")]
    assert all(seconds > 0 for seconds in phases)
    assert sum(phases) <= warm["time/iteration"]
    assert written["versions"]["torch"] == torch.__version__
    assert written["mfu_of_measured_matmul"] == pytest.approx(
        warm["training_flops"] / warm["time/train"] / written["matmul_flops"]
    )
