"""A pool of grading processes that can always be killed.

Each worker is a plain subprocess (not of :mod:`multiprocessing`, whose daemonic processes may have no children), so
that the pool works from any thread, under pytest and within a data-loader's worker. It is started when first needed.
The parent waits for each judgement with a deadline and then kills the process with SIGKILL, which stops C loops too.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.grading.pool.worker import MAX_MESSAGE, write_message

START_LIMIT_S = 120.0
#: What a worker's own alarm leaves to the parent, which kills first.
_ALARM_MARGIN_S = 2.0
_ROOT = Path(__file__).resolve().parents[3]


class WorkerLostError(RuntimeError):
    """The worker died or did not answer in time."""


class Worker:
    """One grading process."""

    def __init__(self, memory_mb: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.ready = False
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.grading.pool.worker", str(memory_mb), str(timeout_s + _ALARM_MARGIN_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )

    def is_ready(self) -> bool:
        """Whether the process has finished its start."""
        if not self.ready and self.process.stdout is not None:
            poll = select.poll()
            poll.register(self.process.stdout.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        return self.ready

    def judge(self, request: Mapping[str, Any]) -> str:
        """The judgement of a request; :class:`WorkerLostError` after the time limit, the worker then being dead."""
        try:
            if not self.ready:
                self._receive(START_LIMIT_S)
                self.ready = True
            assert self.process.stdin is not None
            write_message(self.process.stdin, request)  # type: ignore[arg-type]
            return self._receive(self.timeout_s)
        except (WorkerLostError, OSError) as error:
            started = self.ready
            self.kill()
            if not started:
                raise RuntimeError(
                    f"a grading process did not start ({error}); `python -m app.grading.pool.worker 1024 5` shows why"
                ) from error
            raise WorkerLostError(str(error)) from error

    def _receive(self, limit_s: float) -> str:
        deadline = time.monotonic() + limit_s
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > MAX_MESSAGE:
            raise WorkerLostError("a message out of bounds")
        return str(json.loads(self._read(size, deadline)))

    def _read(self, size: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()  # select() fails for descriptors above 1023
        poll.register(descriptor, select.POLLIN)
        data = b""
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise WorkerLostError("no answer in time")
            part = os.read(descriptor, size - len(data))
            if not part:
                raise WorkerLostError("the process ended")
            data += part
        return data

    def kill(self) -> None:
        """Ends the process at once and reaps it; safe to call again."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class WorkerPool:
    """``workers`` processes that judge requests side by side; usable from any thread.

    They start when they are first needed. After the first loss one more is kept in reserve, so that a request need
    not wait for the start of a replacement.

    Attributes:
        restarts: how many workers were killed or lost so far.
    """

    def __init__(self, workers: int, timeout_s: float, memory_mb: int) -> None:
        self.workers = workers
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.restarts = 0
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._changed = threading.Condition()
        self._busy = 0
        self._idle: list[Worker] = []
        self._live: set[Worker] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._finalizer = weakref.finalize(self, _kill_all, self._live, self._owner)

    def judge_all(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        """A judgement for every request, in order; "limit" where time, memory or the stack ran out."""
        self._own()
        if len(requests) < 2:
            return [self._judge(request) for request in requests]
        return list(self._started_threads().map(self._judge, requests))

    def submit(self, request: Mapping[str, Any]) -> "Future[str]":
        """The judgement of a request, without waiting for it."""
        self._own()
        return self._started_threads().submit(self._judge, request)

    def _own(self) -> None:
        if self._owner != os.getpid():  # forked: the parent's workers, threads and locks are not ours
            self._finalizer.detach()
            self._reset()

    def _started_threads(self) -> ThreadPoolExecutor:
        with self._changed:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="grader")
            return self._threads

    def _judge(self, request: Mapping[str, Any]) -> str:
        worker = self._acquire()
        answered = False
        try:
            judgement = worker.judge(request)
            answered = True
        except WorkerLostError:
            judgement = "limit"
        finally:
            # without an answer, interrupted or lost, it would answer the next request with this one's judgement
            self._release(worker, answered)
        return judgement

    def _acquire(self) -> Worker:
        """An idle worker, a ready one if there is one; waits while ``workers`` are busy."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self.workers)
            self._busy += 1
            while len(self._live) < self.workers:
                self._idle.append(self._start())
            ready = [worker for worker in self._idle if worker.is_ready()]
            worker = ready[-1] if ready else self._idle[0]
            self._idle.remove(worker)
            return worker

    def _release(self, worker: Worker, usable: bool) -> None:
        if not usable:
            worker.kill()
        with self._changed:
            self._busy -= 1
            if usable and worker in self._live:
                self._idle.append(worker)
            elif worker in self._live:  # otherwise the pool was closed meanwhile
                self._live.discard(worker)
                self.restarts += 1
                while len(self._live) < self.workers + 1:
                    self._idle.append(self._start())
            self._changed.notify_all()

    def _start(self) -> Worker:
        worker = Worker(self.memory_mb, self.timeout_s)
        self._live.add(worker)
        return worker

    def close(self) -> None:
        """Kills the workers; the pool starts anew when it is used again."""
        if self._owner != os.getpid():
            return
        with self._changed:
            threads = self._threads
            _kill_all(self._live, self._owner)
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        _kill_all(self._live, self._owner)
        self._finalizer.detach()
        self._reset()


def _kill_all(live: set[Worker], owner: int) -> None:
    """Kills the workers of the process ``owner``, and of no other after a fork."""
    if os.getpid() != owner:
        return
    while live:
        live.pop().kill()
