"""A grading process: reads requests from its standard input and writes judgements, until its input ends.

Run by :mod:`app.grading.pool.workers` as ``python -m app.grading.pool.worker MEMORY_MB SECONDS``. A message is four
bytes of length (big-endian) and as many of ASCII JSON, so that lone surrogates and null bytes pass unharmed.
"""

import json
import os
import resource
import select
import signal
import sys
from typing import Any, BinaryIO

MAX_MESSAGE = 1 << 20
_PARENT_CHECK_S = 10.0
#: What hostile mathematics makes of Python; the item is given up, the process goes on.
_LIMITS = (MemoryError, RecursionError)


def write_message(stream: BinaryIO, message: Any) -> None:
    """One message; see the module for the format."""
    data = json.dumps(message).encode("ascii")
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def main() -> None:
    """Answers requests one by one; returns when the parent closes the pipe or is gone."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # a signal to the whole job is the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    memory_mb, seconds = int(sys.argv[1]), float(sys.argv[2])
    requests, answers = os.fdopen(0, "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not reach the pipe
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _preload()
    write_message(answers, "ready")
    while (request := _read_request(requests, os.getppid())) is not None:
        # the kernel's own alarm ends even a C loop of a worker whose parent has died
        signal.setitimer(signal.ITIMER_REAL, seconds)
        judgement = _answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(answers, judgement)


def _preload() -> None:
    """All imports and first-call costs, before the first request is timed."""
    from app.grading.comparing.symbolic import preload
    from app.grading.matching import judge

    judge("x^2", r"x \cdot x", {})
    preload()


def _read_request(stream: Any, parent: int) -> dict[str, Any] | None:
    while not select.select([stream], [], [], _PARENT_CHECK_S)[0]:
        if os.getppid() != parent:
            return None
    header = _read_exactly(stream, 4)
    return json.loads(_read_exactly(stream, int.from_bytes(header, "big"))) if header else None


def _read_exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            return b""
        data += part
    return data


def _answer(request: dict[str, Any]) -> str:
    """A judgement of :func:`app.grading.matching.judge`, or "limit" where memory or the stack ran out."""
    from app.grading.matching import judge

    gold, answer, extra = request["gold"], request["answer"], request["extra"]
    try:
        judgement = judge(gold, answer, extra)
        if request["symmetric"] and judgement != "match":
            judgement = judge(answer, gold, extra)
    except _LIMITS:
        return "limit"
    return judgement


if __name__ == "__main__":
    main()
