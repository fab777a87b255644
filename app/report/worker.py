"""A process that executes runs one after the other, each through the same function as ``main.py``.

Starting Python and importing torch and Lightning takes as long as a small run: here it is done once. Requests come as
lines of JSON on the standard input, answers leave on what was the standard output; the output of a run goes to its log.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.storage.durable import write_bytes
from app.storage.lock import FolderLock

RESULT, LOG = "result.json", "run.log"
_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 3600.0


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        folder: of this run alone.
        arguments: what follows ``main.py``.
        identity: goes into the result, by which a finished run is recognised.
        curves: name in the result → curve that must have been logged.
        own: whether the run gets a process of its own.
    """

    folder: str
    arguments: list[str]
    identity: str
    curves: dict[str, str]
    own: bool = False


def main() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        code = execute(Request(**json.loads(line)))
        with contextlib.suppress(BrokenPipeError):  # the report that asked was killed: what is finished stays so
            print(json.dumps({"code": code}), file=answers, flush=True)


def execute(request: Request) -> int:
    """Runs ``request`` unless its result is there already.

    Returns:
        The run's exit code; 2 as well where it has not logged a curve of ``request.curves``.
    """
    folder = Path(request.folder)
    with FolderLock(folder, "--folder", "a run", _PATIENCE_S):  # which a worker of a killed report may still hold
        if is_finished(folder, request.identity):
            return 0
        (folder / RESULT).unlink(missing_ok=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        with (folder / LOG).open("w") as log, _output_to(log.fileno()):
            code = _own_process(request.arguments) if request.own else _in_process(request.arguments)
            problem = _keep(folder, request) if code == 0 else None
            if problem is not None:
                print(f"error: {problem}", file=log, flush=True)
            return code if problem is None else 2


def is_finished(folder: Path, identity: str) -> bool:
    """Whether the result of this very run is there, whole."""
    return (folder / RESULT).is_file() and read_result(folder)["identity"] == identity


def read_result(folder: Path) -> Mapping[str, Any]:
    """What a finished run left."""
    found: Mapping[str, Any] = json.loads((folder / RESULT).read_bytes())
    return found


def _keep(folder: Path, request: Request) -> str | None:
    """Puts the curves into the result, as the run's last step; what is wrong where one is missing."""
    from app.quickstart import read_scalars

    scalars = read_scalars(folder / "run") if request.curves else {}
    for curve in request.curves.values():
        if curve not in scalars:
            return f"the run has logged no curve {curve}; there are {', '.join(sorted(scalars))}"
    curves = {name: scalars[curve] for name, curve in request.curves.items()}
    write_bytes(folder / RESULT, json.dumps({**asdict(request), "curves": curves}).encode())
    return None


def _in_process(arguments: list[str]) -> int:
    from app.cli.main import main as run

    try:
        return run(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:  # noqa: BLE001  whatever ended the run, as main.py would: a traceback, and code 1
        traceback.print_exc()
        return 1


def _own_process(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "main.py", *arguments], cwd=_ROOT, check=False).returncode


@contextlib.contextmanager
def _output_to(descriptor: int) -> Iterator[None]:
    """Standard output and error go to ``descriptor``, those of child processes too."""
    kept = [os.dup(1), os.dup(2)]
    try:
        for number in (1, 2):
            os.dup2(descriptor, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


if __name__ == "__main__":
    main()
