"""Several ranks of the trainer, and several workers of one engine."""

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow


def test_two_ranks_with_a_sharded_policy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engines.vllm.two_ranks"],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, output in enumerate(outputs):
        assert f"rank {rank} separate right" in output, output[-3000:]
        assert f"rank {rank} colocated right" in output, output[-3000:]
    assert "(died): on rank 1: vLLM failed while it generated: RuntimeError: out of memory, for a test" in outputs[0]
