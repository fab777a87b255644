"""A vLLM engine in a process of its own: ``python -m app.engines.vllm.server --listen HOST:PORT``.

It knows nothing of a run: a trainer connects, sends the model's config and tokenizer, then weights and requests, one
trainer at a time. Whoever reaches the port can use the engine: let it listen on a trusted network alone.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from app.engines.vllm.settings import check_address
from app.engines.vllm.wire import pack_groups, receive, send, socket_address, unpack_requests
from app.errors import ConfigurationError

Answer = dict[str, Any]


class EngineServer:
    """Answers a trainer's messages with the engine that its ``load`` message built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Any = None

    def answer(self, header: dict[str, Any], payload: bytes) -> Answer:
        """The answer to one message; an exception becomes one too."""
        try:
            return getattr(self, f"on_{header['op']}")(header, payload) or {}
        except ConfigurationError as error:
            return {"error": str(error), "configuration": True, "key": error.key}
        except Exception as error:  # noqa: BLE001  it is the trainer that has to know, whatever it is
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def on_hello(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Which GPUs the engine would use, which decides how weights will come."""
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return {"gpus": [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]}

    def on_load(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Builds the engine, in place of one that an earlier trainer left."""
        from app.engines.vllm.local import LocalEngine, LocalEngineSettings

        self.close()
        for name, text in header["files"].items():
            (self.folder / Path(name).name).write_bytes(text.encode("latin-1"))
        self.engine = LocalEngine(self.folder, LocalEngineSettings(**header["settings"]))
        return {"max_model_len": self.engine.max_model_len}

    def on_call(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Calls a method of the workers' extension, with the payload as last argument where there is one."""
        arguments = [*header["args"], *([payload] if payload else [])]
        return {"results": self.engine.call(header["method"], *arguments)}

    def on_adapt(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Takes over adapters."""
        self.engine.adapt(header["rank"], payload)
        return {}

    def on_transfer(self, header: dict[str, Any], payload: bytes) -> Answer:
        """One step of vLLM's own weight transfer."""
        self.engine.llm.collective_rpc(header["method"], kwargs=header["kwargs"])
        return {}

    def on_forget(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Empties the prefix cache."""
        self.engine.forget_prefixes()
        return {}

    def on_generate(self, header: dict[str, Any], payload: bytes) -> Answer:
        """Completions for the requests."""
        return {"groups": pack_groups(self.engine.generate(unpack_requests(header["requests"])))}

    def close(self) -> None:
        """Frees the engine."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def serve(listener: socket.socket, server: EngineServer) -> None:
    """Serves one trainer after the other, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            while True:
                header, payload = receive(connection)
                send(connection, server.answer(header, payload))


def end_with(parent: int, folder: Path) -> None:
    """Ends this process and its children, and removes ``folder``, once ``parent`` is no longer its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Listens until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m app.engines.vllm.server", description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port, or unix:/path")
    parser.add_argument("--parent", type=int, help="end with this process, which made the socket's folder")
    arguments = parser.parse_args()
    check_address(arguments.listen)
    own = None if arguments.parent is None else Path(arguments.listen.removeprefix("unix:")).parent
    if own is not None:
        end_with(arguments.parent, own)
    family, address = socket_address(arguments.listen)
    with tempfile.TemporaryDirectory(dir=own) as folder, socket.socket(family) as listener:
        if family == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        print(f"listening on {arguments.listen}", flush=True)
        serve(listener, EngineServer(Path(folder)))


if __name__ == "__main__":
    main()
