"""The trainer's side of an engine process: starts it, talks to it, and leaves none behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from app.engines.engine import Completion, GenerationRequest
from app.engines.faults import EngineFailure, FailureKind
from app.engines.vllm.wire import pack_requests, receive, send, socket_address, unpack_groups
from app.errors import ConfigurationError
from app.storage.scratch import ScratchFolder

PROJECT = Path(__file__).resolve().parents[3]
SERVER = "app.engines.vllm.server"


class EngineProcess:
    """A connection to one engine server, which this object has started unless an address is given.

    Args:
        address: of a running server; None starts one on this machine, reached by a socket that only this user can
            open.
        start_timeout_s: for starting, connecting and building the engine.
        answer_timeout_s: for every other answer; an engine that takes longer is taken to hang.
        devices: the GPUs of a server that is started here, by number among those that the trainer sees; None leaves it
            all of them.
    """

    def __init__(
        self,
        address: str | None,
        start_timeout_s: float,
        answer_timeout_s: float,
        devices: Sequence[int] | None = None,
    ) -> None:
        self.start_timeout_s = start_timeout_s
        self.answer_timeout_s = answer_timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self._folder: ScratchFolder | None = None
        if address is None:
            self._folder = ScratchFolder("vllm-engine")
            address = f"unix:{self._folder.path}/socket"
            self.process = self._launch(address, devices)
            # also at interpreter exit, when nobody called close
            weakref.finalize(self, _kill_group, self.process)
        self.address = address
        self.connection: socket.socket | None = None

    def _launch(self, address: str, devices: Sequence[int] | None) -> "subprocess.Popen[bytes]":
        """Starts the server in a session of its own: Ctrl-C reaches the trainer alone, which then ends the group."""
        command = [sys.executable, "-m", SERVER, "--listen", address, "--parent", str(os.getpid())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
        # CUDA IPC handles come pickled; only this user can open the socket
        environment.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_names_of(devices))
        with self._log_path.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    @property
    def _log_path(self) -> Path:
        assert self._folder is not None
        return self._folder.path / "log"

    def connect(self) -> None:
        """Waits for the server's socket.

        Raises:
            EngineFailure: "start", with the end of the server's output where it is ours.
        """
        family, address = socket_address(self.address)
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            connection = socket.socket(family)
            try:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                connection.connect(address)
            except OSError as error:
                connection.close()
                self._check_started(deadline, error)
                time.sleep(0.1)
            else:
                self.connection = connection
                return

    def _check_started(self, deadline: float, error: OSError) -> None:
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            raise EngineFailure("start", f"the engine process ended with code {code} at its start{self._last_words()}")
        if time.monotonic() > deadline:
            raise EngineFailure(
                "start", f"no engine at {self.address} within {self.start_timeout_s:g} s ({error}){self._last_words()}"
            )

    def _last_words(self) -> str:
        """The last line that the process printed, for error messages."""
        if self._folder is None:
            return ""
        try:
            text = self._log_path.read_text(errors="replace")
        except FileNotFoundError:  # closed meanwhile, by another thread
            return ""
        lines = [line for line in text.splitlines() if line.strip()]
        return f"; its last words: {lines[-1].strip()}" if lines else ""

    def ask(self, header: dict[str, Any], payload: bytes = b"", timeout_s: float | None = None) -> dict[str, Any]:
        """Sends one message and waits for the answer.

        Raises:
            EngineFailure: "died", "hung" or "refused".
            ConfigurationError: the engine says that a setting cannot work.
        """
        assert self.connection is not None, "connect comes first"
        timeout_s = self.answer_timeout_s if timeout_s is None else timeout_s
        self.connection.settimeout(timeout_s)
        try:
            send(self.connection, header, payload)
            answer, _ = receive(self.connection)
        except TimeoutError as error:
            message = f"the engine gave no answer to {header['op']!r} within {timeout_s:g} s"
            raise EngineFailure(_kind(header, "hung"), message) from error
        except OSError as error:
            self._raise_died(header, error)
        if "error" in answer:
            if answer.get("configuration"):
                key = answer.get("key")
                raise ConfigurationError(answer["error"].removeprefix(f"{key}: "), key=key)
            raise EngineFailure(_kind(header, "refused"), f"the engine could not {header['op']}: {answer['error']}")
        return answer

    def _raise_died(self, header: dict[str, Any], error: OSError) -> NoReturn:
        code, process = "", self.process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = f" with code {process.wait(5)}"
        message = f"the engine process ended{code} during {header['op']!r}{self._last_words()}"
        raise EngineFailure(_kind(header, "died"), message) from error

    def call(self, method: str, *arguments: Any, payload: bytes = b"") -> list[Any]:
        """The results of a method of the workers' extension on every worker."""
        return self.ask({"op": "call", "method": method, "args": list(arguments)}, payload)["results"]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """See :class:`app.engines.engine.RolloutEngine`."""
        return unpack_groups(self.ask({"op": "generate", "requests": pack_requests(requests)})["groups"])

    def hang_up(self) -> None:
        """Makes another thread's wait for an answer end at once."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the connection, and the process and its children where they are ours; another thread's wait too."""
        self.hang_up()
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.process is not None:
            _kill_group(self.process)
            self.process = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None


def _names_of(devices: Sequence[int]) -> list[str]:
    """What the driver calls these devices, which are numbered among those that this process sees.

    Raises:
        ConfigurationError: it does not see so many.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return [str(device) for device in devices]
    names = [name.strip() for name in shown.split(",") if name.strip()]
    if max(devices) >= len(names):
        message = f"{max(devices)} is not among the {len(names)} GPUs of CUDA_VISIBLE_DEVICES={shown}"
        raise ConfigurationError(message, key="engine.devices")
    return [names[device] for device in devices]


def _kind(header: dict[str, Any], kind: FailureKind) -> FailureKind:
    """Whatever goes wrong before the engine is built: it could not start."""
    return "start" if header["op"] in ("hello", "load") else kind


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that leads its own group, with the group; a stopped one too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
