"""The program behind ``make quickstart``: from a warm start to the table."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.policy.exporting import save_policy
from app.policy.models import load_policy, load_tokenizer
from app.quickstart import Outcome, format_outcomes, read_scalars
from tests.running import policy_settings

ROOT = Path(__file__).parents[1]


def test_the_table_gives_means_over_seeds_and_the_range() -> None:
    outcomes = [
        Outcome("GRPO", [0.4] * 5 + [0.8] * 5, [0.40, 0.90]),
        Outcome("GRPO", [0.2] * 5 + [0.6] * 5, [0.40, 0.80]),
        Outcome("GRPO-λ", [0.4] * 5 + [1.0] * 5, [0.40, 0.95]),
        Outcome("GRPO-λ", [0.2] * 5 + [0.44] * 5, [0.40, 0.75]),
    ]
    lines = format_outcomes(outcomes).splitlines()
    rows = [line.split() for line in lines[1:3]]
    assert rows[0] == ["GRPO", "2", "0.300", "0.700", "0.500", "0.400", "0.850", "0.800", "–", "0.900"]
    assert rows[1] == ["GRPO-λ", "2", "0.300", "0.720", "0.510", "0.400", "0.850", "0.750", "–", "0.950"]
    # +0.1 and -0.08: their standard deviation is 0.18 / √2
    assert lines[3] == "GRPO-λ - GRPO, seed by seed: mean reward +0.010 (standard error 0.090), ahead on 1 of 2"
    assert "seed by seed" not in format_outcomes(outcomes[::2])


@pytest.mark.slow
def test_a_short_run_of_both_methods_prints_the_table_and_leaves_curves(tmp_path: Path) -> None:
    settings = policy_settings(max_position_embeddings=128)
    save_policy(load_policy(settings), load_tokenizer(settings), tmp_path / "warm-start" / "hf")
    options = ["--folder", str(tmp_path), "--seeds", "1", "--iterations", "2"]
    command = [sys.executable, "-m", "app.quickstart", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "used as it is" in done.stdout
    assert "GRPO-λ      1" in done.stdout
    assert len(read_scalars(tmp_path / "grpo-lambda-seed1")["reward"]) == 2


def test_a_step_that_fails_ends_with_its_last_lines(tmp_path: Path) -> None:
    folder = tmp_path / "warm-start" / "hf"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    command = [sys.executable, "-m", "app.quickstart", "--folder", str(tmp_path), "--seeds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed with exit code 2" in done.stderr
    assert "model.policy.path" in done.stderr
