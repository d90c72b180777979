"""Entries for the journal, sent without ever waiting for it.

journald may be stopped, or wait for the very disk that is sick; libsystemd's sd_journal_send() then
blocks its caller. Here each entry is one datagram of the native protocol (systemd's
JOURNAL_NATIVE_PROTOCOL) on a socket that does not block. What does not go out at once waits in
memory, in order, and is tried again; what is too much is dropped and counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterable

PATH = "/run/systemd/journal/socket"
WAITING_LIMIT = 1024
ENTRY_LIMIT = 32 << 10  # far below the default of SO_SNDBUF, so no memfd is ever needed
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 5.0


class JournalSocket:
    """One sender. Needs a running event loop; `close` at the end."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._waiting: deque[bytes] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S
        self.sent = 0
        self.dropped = 0
        self.problem: str | None = None

    @property
    def waiting(self) -> int:
        """Entries that have not been sent yet."""
        return len(self._waiting)

    def send(self, fields: Iterable[tuple[str, str]]) -> None:
        """Send an entry, now or as soon as the journal takes it."""
        entry = encode(fields)
        if len(entry) > ENTRY_LIMIT or len(self._waiting) >= WAITING_LIMIT:
            self.dropped += 1
            return
        self._waiting.append(entry)
        if self._timer is None or self._pause_s > 1.0:
            self._drain()

    def close(self) -> int:
        """Try a last time; returns how many entries are lost with that."""
        self._drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._socket.close()
        lost = len(self._waiting)
        self.dropped += lost
        self._waiting.clear()
        return lost

    def _drain(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            try:
                # By its path each time: a journald that was started again has another socket.
                self._socket.sendto(self._waiting[0], self._path)
            except OSError as error:
                self._later(error)
                return
            self._waiting.popleft()
            self.sent += 1
            self._pause_s = FIRST_PAUSE_S
        self.problem = None

    def _later(self, error: OSError) -> None:
        self.problem = (
            "journald takes no more entries"
            if isinstance(error, BlockingIOError)
            else f"{self._path}: {os.strerror(error.errno or 0)}"
        )
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._pause_s, self._drain)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """One entry; a value with a line break is sent with its length before it, little-endian."""
    entry = bytearray()
    for name, text in fields:
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            entry += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            entry += name.encode() + b"=" + value + b"\n"
    return bytes(entry)
