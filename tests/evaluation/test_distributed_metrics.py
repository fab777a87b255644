"""Two real processes with gloo against one process."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from app.evaluation.intervals import Interval
from app.evaluation.metrics import benchmark_metrics, sample_columns, summarise
from app.evaluation.samples import Sample
from tests.evaluation.rows import random_rows

SAMPLES, PASS_K, PROBLEMS = 3, (1, 2), 11
FIRST_PROBLEM_OF_RANK_1 = {"uneven": 4, "empty rank 1": PROBLEMS, "empty rank 0": 0, "repeated": 6}


def shares(kind: str) -> list[list[Sample]]:
    """The rows of each of two ranks."""
    rows = random_rows(PROBLEMS, SAMPLES)
    cut = FIRST_PROBLEM_OF_RANK_1[kind] * SAMPLES
    again = rows[:SAMPLES] if kind == "repeated" else []
    return [rows[:cut], rows[cut:] + again]


def evaluate_share(rank: int, kind: str) -> dict[str, Interval]:
    metrics = benchmark_metrics(SAMPLES, PASS_K)
    rows = shares(kind)[rank]
    half = len(rows) // (2 * SAMPLES) * SAMPLES
    for batch in (rows[:half], rows[half:]):
        if batch:
            metrics.update(**sample_columns(batch, SAMPLES)._asdict())
    return dict(metrics.compute())


def run_rank(rank: int, folder: str) -> None:
    timeout = timedelta(seconds=60)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
    found = {kind: evaluate_share(rank, kind) for kind in FIRST_PROBLEM_OF_RANK_1}
    if rank == 0:  # merged logs are summarised on one rank, which must not wait for the other
        found["alone"] = dict(summarise(random_rows(PROBLEMS, SAMPLES), SAMPLES, PASS_K).intervals)
    plain = {kind: {name: tuple(each) for name, each in scores.items()} for kind, scores in found.items()}
    torch.save(plain, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one_process(tmp_path: Path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    scores = summarise(random_rows(PROBLEMS, SAMPLES), SAMPLES, PASS_K).intervals
    expected = {name: tuple(each) for name, each in scores.items()}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == 5 - rank
        for kind, each in found.items():
            assert each == expected, kind
