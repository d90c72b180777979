"""The way of one program into a sandbox, and what comes out about how it ended."""

from __future__ import annotations

import os
import select
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

_MAX_STATUS = 4096


class Entry(ABC):
    """One program's way in. Use once; `started` or `close` it, and `finish` what was started.

    `stdin`, `stderr` and `inherited` are what the command that is started gets as these.
    """

    def __init__(self) -> None:
        self._status, self._status_end = os.pipe()
        self._ours = [self._status_end]
        self.stdin = subprocess.DEVNULL
        self.stderr = subprocess.STDOUT
        self.inherited: tuple[int, ...] = ()

    @abstractmethod
    def command(self, argv: Sequence[str]) -> tuple[str, ...]:
        """What is to be started, for `argv` to run inside."""

    @abstractmethod
    def end_command(self) -> tuple[str, ...]:
        """What ends the program after its command was killed; empty where it died with that."""

    @abstractmethod
    def exit_code(self, told: bytes) -> int | None:
        """The program's, from what was written into the status pipe; None where it never ended."""

    def started(self) -> None:
        """Close what the command has by now."""
        for fd in self._ours:
            os.close(fd)
        self._ours = []

    def close(self) -> None:
        """Nothing is going to run."""
        self.started()
        os.close(self._status)

    def finish(self, timeout_s: float) -> tuple[int | None, bool]:
        """The program's exit code, and whether nothing runs inside any more. Blocks.

        128 + N after signal N, None where it never ran or was cut off: what builds a sandbox ends
        with 1 when it fails, which means "repaired" to others.
        """
        deadline = time.monotonic() + timeout_s
        told, gone = b"", False
        try:
            # It stays open until the sandbox has ended.
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            while not gone and (left := deadline - time.monotonic()) > 0:
                if poll.poll(left * 1000):
                    more = os.read(self._status, _MAX_STATUS)
                    told, gone = told + more, not more
        finally:
            os.close(self._status)
        return self.exit_code(told), gone
