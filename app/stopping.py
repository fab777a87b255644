"""Signals that ask a run to stop: noted where they arrive, obeyed where all ranks stand together.

A signal may reach one rank or all, each at another place: an exception there would leave the others waiting in a
collective for ever, and half an update behind. So a signal is only taken note of, save for two places where nothing
is lost: :meth:`RunStop.interruptible`, work that no other rank takes part in, and :meth:`RunStop.interruptible_alone`,
work between two updates of a run of one process. What all ranks agree on, they raise together: in
:meth:`RunStop.check`, or in :meth:`RunStop.obey` after a collective that was due anyway.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""Ctrl-C, SLURM's warning ahead of a time limit (``--signal=USR1@120``), and what schedulers and ``kill`` send."""
CHILDREN_LIMIT_S = 60.0


class StopRequested(BaseException):
    """A signal ends the run, on all ranks at the same place. No ``Exception``: libraries must not swallow it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    def __reduce__(self) -> tuple[type["StopRequested"], tuple[int]]:
        return StopRequested, (self.number,)  # other ranks hear of it too

    @property
    def exit_code(self) -> int:
        """1 after Ctrl-C, as ever; otherwise the shell's code of a process that the signal ended."""
        return 1 if self.number == signal.SIGINT else 128 + self.number


class Ranks(Protocol):
    """What agreements need of :class:`app.engines.ranks.RolloutRanks`."""

    rank: int
    size: int

    def largest(self, value: int) -> int:
        """Collective. The largest ``value`` of any rank."""


class RunStop:
    """What this process knows of signals, which are the process's own: there is one object, :data:`STOP`.

    Attributes:
        received: the number of the signal that arrived here, or that all ranks agreed on; 0 for none.
        stopping: whether the run is on its way out; further signals than Ctrl-C change nothing then.
    """

    def __init__(self) -> None:
        self.received = 0
        self.stopping = False
        self._open = False  # whether a signal may raise where it arrives
        self._agreed = 0
        self._ranks: Ranks | None = None
        self._children: list[subprocess.Popen[Any]] = []
        self._adopted: list[subprocess.Popen[Any]] = []
        self._before: dict[int, Any] = {}

    # ── handlers ──

    def install(self, ranks: Ranks, children: list["subprocess.Popen[Any]"], further: Iterable[int]) -> None:
        """Takes note of signals from now on. What the process was started to ignore (``nohup``) it goes on ignoring.

        Args:
            ranks: for agreements, of a group that nothing else uses.
            children: the launcher's list of the ranks that this process started. They are told of its signals, Ctrl-C
                excepted, which reaches them from the terminal; the list is emptied when the run stops, for the
                launcher's watch would take a rank that ends with a signal's exit code for a crash, and kill this
                process in the middle of its end.
            further: signals besides :data:`STOP_SIGNALS`.
        """
        self.received, self._agreed, self.stopping, self._open = 0, 0, False, False
        self._ranks, self._children = ranks, children
        self._before = {number: signal.getsignal(number) for number in {*STOP_SIGNALS, *further}}
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._note)

    def restore(self) -> None:
        """Puts the former handlers back, unless the run is stopping: a scheduler may repeat itself."""
        if not self.stopping:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None is not of Python
            self._before, self._ranks, self._children = {}, None, []

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the process at once, wherever it is
        if self.stopping:
            return
        self._pass_on(number)
        self.received = max(self.received, number)
        if self._open:
            self._interrupt()

    def _pass_on(self, number: int) -> None:
        """Tells the ranks that this process started, and whoever looks at the terminal."""
        if number != signal.SIGINT:
            for child in self._children:
                child.send_signal(number)
        if not self.received and self._ranks is not None and self._ranks.rank == 0:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            line = f"{signal.Signals(number).name}: the run stops at the next place where nothing is lost{again}"
            os.write(2, f"\n{line}\n".encode())  # a handler may not use streams that it interrupts

    # ── where the run may stop ──

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal that reaches this rank raises at once: for work that no other rank takes part in, within
        :meth:`together` or an agreement like it. In another thread than the main one it does nothing, for that one
        would be interrupted.

        Raises:
            StopRequested: a signal arrived before or meanwhile.
        """
        if threading.current_thread() is not threading.main_thread() or self.stopping:
            yield
            return
        before, self._open = self._open, True
        try:
            if self.received:
                self._interrupt()
            yield
        finally:
            self._open = before

    def interruptible_alone(self) -> contextlib.AbstractContextManager[None]:
        """:meth:`interruptible` in a run of one process; nothing where other ranks may wait for this one."""
        return self.interruptible() if self._alone else contextlib.nullcontext()

    def check(self) -> None:
        """Collective. Raises on all ranks once a signal has reached any of them.

        Raises:
            StopRequested: the same on all ranks.
        """
        if self._ranks is not None and not self.stopping:
            self.agree([self._ranks.largest(self.received)])
            self.obey()

    def agree(self, received: Iterable[int]) -> None:
        """Notes what all ranks have received, as a collective has told each of them."""
        self._agreed = max(received)

    def obey(self) -> None:
        """Raises once all ranks know of a signal. Not collective, but for all of them at the same place.

        Raises:
            StopRequested: the same on all ranks.
        """
        if self._agreed and not self.stopping:
            self.received, self.stopping = self._agreed, True
            self._adopted, self._children[:] = list(self._children), []
            raise StopRequested(self._agreed)

    def together(self, action: Callable[[], T]) -> T:
        """Collective. The result of ``action``, unless a signal has reached any rank.

        Raises:
            StopRequested: the same on all ranks.
        """
        try:
            result = action()
        except StopRequested:
            if self._alone:
                raise
        self.check()
        return result

    @property
    def _alone(self) -> bool:
        return self._ranks is None or self._ranks.size == 1

    def _interrupt(self) -> None:
        self._open, self.stopping = False, self._alone
        raise StopRequested(self.received)

    def finish(self) -> None:
        """For the end of a run that was stopped: returns when the ranks that this process started have ended, of which
        one that hangs is killed, and has this process end with its exit code, though schedulers and torchrun repeat
        SIGTERM while the interpreter, which takes its handlers back, shuts down."""
        for number in self._before:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)
        for child in self._adopted:
            try:
                child.wait(CHILDREN_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()


STOP = RunStop()
