"""A helper of test_helper_start.py: its import takes longer than its requests may."""

from __future__ import annotations

import socket
import time

from fswatchd.helpers import wire

IMPORT_S = 3.0
time.sleep(IMPORT_S)


def main(fd: int) -> None:
    """Answer to everything but to `nothing`."""
    with socket.socket(fileno=fd) as sock:
        while True:
            request, _ = wire.receive(sock)
            if request is None:
                return
            if request["op"] != "nothing":
                wire.reply(sock, request, {"heard": request["op"]})
