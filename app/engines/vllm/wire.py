"""Messages between the trainer and an engine process: a JSON header and raw bytes, both with their lengths first."""

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from app.engines.engine import Completion, GenerationRequest, SamplingSettings

_LENGTHS = struct.Struct("!QQ")


def send(connection: socket.socket, header: dict[str, Any], payload: bytes = b"") -> None:
    """Sends one message."""
    text = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(payload)) + text)
    if payload:
        connection.sendall(payload)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Waits for one message.

    Raises:
        ConnectionError: the other side is gone.
        TimeoutError: nothing came within the socket's timeout.
    """
    header_length, payload_length = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    header = json.loads(_exactly(connection, header_length))
    return header, _exactly(connection, payload_length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view, filled = memoryview(buffer), 0
    while filled < length:
        count = connection.recv_into(view[filled:])
        if count == 0:
            raise ConnectionError("the connection was closed")
        filled += count
    return bytes(buffer)


def pack_requests(requests: Sequence[GenerationRequest]) -> list[dict[str, Any]]:
    """Requests as JSON values."""
    return [asdict(request) | {"prompt_ids": list(request.prompt_ids)} for request in requests]


def unpack_requests(rows: list[dict[str, Any]]) -> list[GenerationRequest]:
    """The inverse of :func:`pack_requests`."""
    return [
        GenerationRequest(
            prompt_ids=row["prompt_ids"],
            n=row["n"],
            seed=row["seed"],
            sampling=SamplingSettings(**row["sampling"]),
            end_token_ids=tuple(row["end_token_ids"]),
        )
        for row in rows
    ]


def pack_groups(groups: Sequence[Sequence[Completion]]) -> list[list[dict[str, Any]]]:
    """Completions as JSON values."""
    return [[asdict(completion) for completion in group] for group in groups]


def unpack_groups(rows: list[list[dict[str, Any]]]) -> list[list[Completion]]:
    """The inverse of :func:`pack_groups`."""
    return [[Completion(**completion) for completion in group] for group in rows]


def socket_address(address: str) -> tuple[int, Any]:
    """(socket family, address) of a checked ``unix:/path`` or ``host:port``."""
    if address.startswith("unix:"):
        return socket.AF_UNIX, address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    return socket.AF_INET, (host, int(port))
