"""The drill's end of the sockets on which scratch VEs report."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

NS = 1_000_000_000
_JOIN_S = 2.0


@dataclass(slots=True)
class Record:
    """Everything one VE has reported, over all its lives. Times are CLOCK_MONOTONIC ns."""

    reads: list[int] = field(default_factory=list)
    read_errors: list[int] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    acked: list[str] = field(default_factory=list)
    write_errors: list[int] = field(default_factory=list)


class ControlServer:
    """Listens for scratch VEs; one thread a connection."""

    def __init__(self, path: Path) -> None:
        self.records: dict[str, Record] = {}
        self._hands: dict[str, BinaryIO] = {}
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        self._start(self._accept)

    def close(self) -> None:
        """Stop listening: the VEs end when their sockets do."""
        # shutdown, because a thread that waits in accept would keep the socket open.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def wait_for(self, ve: str, timeout_s: float) -> bool:
        """Wait until the VE has read and written something."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    ve in self._hands and bool(self.records[ve].acks and self.records[ve].reads)
                ),
                timeout_s,
            )

    def wait_for_hand(self, ve: str, timeout_s: float) -> bool:
        """Wait until the VE does as it is told."""
        with self._changed:
            return self._changed.wait_for(lambda: ve in self._hands, timeout_s)

    def wait_for_ack_after(self, ve: str, time_ns: int, timeout_s: float) -> bool:
        """Wait until the VE has acknowledged a write after `time_ns`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: bool(self.records[ve].acks) and self.records[ve].acks[-1] > time_ns,
                timeout_s,
            )

    def ask(self, ve: str, op: str, **arguments: str) -> list[dict[str, Any]]:
        """Let the VE do something; its answers, the last of which may hold `errno`."""
        with self._changed:
            hand = self._hands.get(ve)
        if hand is None:
            raise ConnectionError(f"{ve} does not run")
        hand.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        hand.flush()
        answers = []
        for line in hand:
            answers.append(json.loads(line))
            if answers[-1].get("done"):
                return answers
        raise ConnectionError(f"{ve} has gone away")

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.add(connection)
        lines = cast("BinaryIO", connection.makefile("rwb"))
        with connection, lines, suppress(OSError):
            ve, _, role = lines.readline().decode().strip().partition(" ")
            with self._changed:
                record = self.records.setdefault(ve, Record())
            if role == "hand":
                self._lend(ve, connection, lines)
            for line in lines if role != "hand" else ():
                self._take(record, role, line.decode().split())
        with self._changed:
            self._connections.discard(connection)

    def _lend(self, ve: str, connection: socket.socket, lines: BinaryIO) -> None:
        """Let `ask` use the connection until the VE is gone."""
        with self._changed:
            self._hands[ve] = lines
            self._changed.notify_all()
        # A poll, not a read: what the VE says is for `ask`.
        poller = select.poll()
        poller.register(connection, select.POLLHUP | select.POLLRDHUP)
        poller.poll()
        with self._changed:
            if self._hands.get(ve) is lines:
                del self._hands[ve]

    def _take(self, record: Record, role: str, words: list[str]) -> None:
        if len(words) < 2:
            return  # cut off when the VE was killed
        moment = int(words[1])
        with self._changed:
            if role == "reader":
                (record.reads if words[0] == "R" else record.read_errors).append(moment)
            elif words[0] == "A" and len(words) == 3:
                record.acks.append(moment)
                record.acked.append(words[2])
            elif words[0] == "E":
                record.write_errors.append(moment)
            self._changed.notify_all()


def longest_gap_s(moments: list[int], since_ns: int, until_ns: int) -> float:
    """The longest time without an entry between two moments, in seconds."""
    inner = [moment for moment in moments if since_ns <= moment <= until_ns]
    before = [moment for moment in moments if moment < since_ns]
    edges = [before[-1] if before else since_ns, *inner]
    if not inner:
        edges.append(until_ns)
    return max((b - a for a, b in pairwise(edges)), default=0) / NS
