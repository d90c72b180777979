"""The way daemon and helper talk: one JSON object a datagram, with file descriptors beside it.

Used on both sides, so it imports little: a helper should start fast and stay small.
"""

from __future__ import annotations

import json
import select
import socket
from contextlib import suppress
from typing import Any

_SIZE = 65536
_MAX_FDS = 4


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one datagram (blocking)."""
    socket.send_fds(sock, [json.dumps(message).encode()], fds)


def reply(
    sock: socket.socket,
    request: dict[str, Any],
    answer: dict[str, Any],
    fds: tuple[int, ...] = (),
) -> None:
    """Answer a request: the number it carried goes back with the answer.

    Where nobody is left to read it, the next `receive` tells.
    """
    with suppress(BrokenPipeError):
        send(sock, {**answer, "number": request.get("number")}, fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one datagram (blocking); None when the other side has closed.

    Also when it has closed without reading our last answer.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, _SIZE, _MAX_FDS)
    except ConnectionResetError:
        return None, []
    return (json.loads(data) if data else None), list(fds)


def is_readable(sock: socket.socket, timeout_s: float) -> bool:
    """Whether something can be received within the time, the end of the other side included.

    By poll(2): select(2) knows no descriptor above 1023, and a busy daemon hands such ones over.
    """
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(max(timeout_s, 0.0) * 1000))
