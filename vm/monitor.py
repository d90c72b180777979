"""The monitor of QEMU: only what it takes to hold a machine, and to put it into a file.

QEMU Machine Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

_ANSWER_S = 60.0
_MOVED_S = 300.0


class MonitorError(OSError):
    """QEMU has refused a command, or does not end it."""


class Monitor:
    """A connection to the monitor behind a unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self._execute("qmp_capabilities")

    def save(self, path: Path) -> None:
        """Stop the processors, write out all disks, and put the memory into `path`."""
        self.hold()
        self._execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(path))}"})
        self._wait_until_moved()

    def hold(self) -> None:
        """Stop the processors, and write out all disks."""
        self._execute("stop")

    def let_run(self) -> None:
        """Let the processors go on."""
        self._execute("cont")

    def go_on(self) -> None:
        """Let a machine that was started from such a file run."""
        self._wait_until_moved()
        self.let_run()

    def close(self) -> None:
        """The machine stays as it is."""
        self._lines.close()
        self._socket.close()

    def _wait_until_moved(self) -> None:
        deadline = time.monotonic() + _MOVED_S
        while (status := self._execute("query-migrate").get("status")) != "completed":
            if status in {"failed", "cancelled"} or time.monotonic() > deadline:
                raise MonitorError(f"memory is not saved or read: {status}")
            time.sleep(0.2)

    def _execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        question = {"execute": name, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(question).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline() or b"{}")
            if "return" in answer:
                return answer["return"]
            if "event" not in answer:
                raise MonitorError(f"{name}: {answer.get('error', 'QEMU has ended')}")
