"""Which of the processes that ranks run in has ended."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from app.engines.lost_ranks import Place, ended_ranks, lost_connection


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_has_ended_before_and_after_it_is_waited_for(sleeper: subprocess.Popen[bytes]) -> None:
    places = [Place.here(), Place(Place.here().host, sleeper.pid)]
    assert ended_ranks(places, patience_s=0) == []
    sleeper.kill()
    assert ended_ranks(places) == [1]  # nobody has waited for it: its parent, a launcher, may be busy
    sleeper.wait()
    assert ended_ranks(places) == [1]


def test_nothing_is_said_of_processes_of_other_machines() -> None:
    assert ended_ranks([Place.here(), Place("elsewhere", os.getpid() + 1)], patience_s=0) == []


def test_lost_connections_are_told_from_other_errors_behind_whatever_was_raised_last() -> None:
    gloo = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    wrapped = ValueError("in the wake of it")
    wrapped.__cause__ = gloo
    assert lost_connection(gloo)
    assert lost_connection(wrapped)
    assert lost_connection(torch.distributed.DistNetworkError("the store is gone"))
    assert not lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
