"""Helper process: sees to it that a VE's processes run again, whatever becomes of the daemon.

One guard for one freeze, and started before it: the daemon freezes, the guard thaws when told to,
when its deadline passes, and when the socket to the daemon closes. It runs the platform's command,
where there is one, and does not rely on it: what is still frozen then is thawed by its cgroup.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

from fswatchd.helpers import wire
from fswatchd.kernel import cgroup

_COMMAND_S = 20.0
_CGROUP_S = 5.0
# A freeze command that the daemon left half-way may still come true after the first thaw.
_WATCH_S = 1.0
_POLL_S = 0.05
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/root",
}


def main(fd: int) -> None:
    """Serve one freeze, then end; with 0 only where the processes run."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as sock:
        request, _ = wire.receive(sock)
        if request is None:
            return
        group, command = request["frozen_cgroup"], request["thaw_command"]
        deadline = time.monotonic() + float(request["deadline_s"])
        asked = None
        with suppress(OSError):  # without a listener it has to thaw all the same
            wire.reply(sock, request, {"armed": True})
            asked = _wait(sock, deadline)
        was_frozen = group is not None and cgroup.is_frozen(group)
        runs = thaw(group, command, watch_s=0.0 if asked else _WATCH_S)
        if asked:
            with suppress(OSError):
                wire.reply(sock, asked, {"was_frozen": was_frozen, "runs": runs})
    if not runs:
        raise SystemExit(1)


def thaw(group: str | None, command: list[str], *, watch_s: float) -> bool:
    """Let the processes run; whether they do. They are looked at for `watch_s` longer."""
    succeeded = not command or _run(command)
    end = time.monotonic() + watch_s
    while group is not None:
        succeeded = not cgroup.is_frozen(group) or cgroup.thaw(group, _CGROUP_S)
        if time.monotonic() >= end:
            break
        time.sleep(_POLL_S)
    return succeeded


def _run(command: list[str]) -> bool:
    try:
        done = subprocess.run(  # the daemon, which starts all other programs, may be gone
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            timeout=_COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _wait(sock: socket.socket, deadline: float) -> dict[str, Any] | None:
    """The request to thaw; None at the deadline and when the daemon is gone."""
    while (left := deadline - time.monotonic()) > 0:
        if not wire.is_readable(sock, left):
            return None
        request, _ = wire.receive(sock)
        if request is None or request["op"] == "thaw":
            return request
    return None
