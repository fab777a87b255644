"""``python main.py …`` as a user types it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 900


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::DeprecationWarning"}


def start(*arguments: str | Path, log: Path) -> subprocess.Popen[bytes]:
    """The command, running; its output goes to ``log``."""
    command = [sys.executable, "main.py", *map(str, arguments)]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT)


def run(*arguments: str | Path, module: str | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command, or ``python -m module``."""
    program = ["main.py"] if module is None else ["-m", module]
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def succeed(*arguments: str | Path, module: str | None = None) -> str:
    """Standard output and error of a command that must succeed."""
    done = run(*arguments, module=module)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
