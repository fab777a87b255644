"""What the soak measures: a process that holds more is seen, and one that does not is not."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.soak import growth, held, is_flat


def test_files_memory_and_threads_of_this_process_and_its_children_are_counted(tmp_path: Path) -> None:
    before = held(os.getpid())
    files = [(tmp_path / str(number)).open("w") for number in range(7)]
    assert held(os.getpid())["files"] == before["files"] + 7
    for file in files:
        file.close()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with_child = held(os.getpid())
        assert with_child["processes"] == before["processes"] + 1
        assert with_child["threads"] > before["threads"]
    finally:
        child.communicate(b"\n")
    block = b"x" * (64 << 20)
    assert held(os.getpid())["memory_mib"] > before["memory_mib"] + 40
    del block


def test_growth_compares_the_last_quarter_with_the_second() -> None:
    rows = [{"memory_mib": 100.0 + 10 * (index < 2), "files": 20.0, "threads": 5.0} for index in range(8)]
    assert is_flat(growth(rows))
    leaking = [{**row, "memory_mib": 100.0 + 3 * index} for index, row in enumerate(rows)]
    assert growth(leaking)["memory_mib"] == {"second_quarter": 107.5, "last_quarter": 119.5}
    assert not is_flat(growth(leaking))
    assert not is_flat(growth([{**row, "files": float(index)} for index, row in enumerate(rows)]))
