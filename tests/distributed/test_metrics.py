"""Two ranks log what one process logs, of rollouts whose sampler is behind the policy: no ratio is 1 by itself."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.job import run
from tests.distributed.launch import launch, result, untimed

pytestmark = pytest.mark.slow

JOB: dict[str, Any] = {
    "optimizer": {"lr": 3e-3, "warmup_iterations": 0},
    "rollouts": {"schedule": {"every_n_iterations": 2}, "truncation": {"mode": "penalise"}},
    "max_new_tokens": 24,
    "iterations": 2,
    "traces": True,
}


def test_every_metric_of_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    run({**JOB, "strategy": "single", "ranks": 1, "folder": str(tmp_path / "one")})
    launch([{**JOB, "strategy": "ddp", "folder": str(tmp_path / "two")}], 2, tmp_path)
    one, *two = (result(tmp_path / "one"), *(result(tmp_path / "two", rank) for rank in (0, 1)))
    assert sum(two[0]["lengths"][1]) != sum(two[1]["lengths"][1])
    mine, theirs = (untimed(seen["metrics"][1]) for seen in (one, two[0]))
    assert abs(mine["sampling/sequence_ratio"] - 1) > 0.01
    assert 0 < mine["completions/clipped_ratio"] < 1
    assert theirs == pytest.approx(mine, rel=1e-4, abs=2e-5)
