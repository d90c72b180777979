"""Helper process: freezes one filesystem, and thaws it whatever becomes of the daemon.

One guard holds one freeze. It thaws when told to, when its deadline passes, and when the socket
to the daemon closes, which the kernel does for a daemon killed with SIGKILL. Signals that end a
service are ignored: the end of the socket is the signal. Told to, it writes back first what is
only in memory: a freeze does so too, and holds all writers meanwhile.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from fswatchd.helpers import wire
from fswatchd.kernel import fs, syscalls


def main(fd: int) -> None:
    """Serve one freeze, then end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as sock:
        request, fds = wire.receive(sock)
        if request is not None and request["op"] == "sync":
            _sync(fds[0])
            _answer(sock, request, {})
            request, fds = wire.receive(sock)
        if request is None:
            return
        directory = fds[0]
        try:
            fs.freeze(directory)
        except OSError as error:
            _answer(
                sock, request, {"errno": error.errno or 5, "message": error.strerror or str(error)}
            )
            return
        held = True
        try:
            _answer(sock, request, {"frozen": True})
            held = _hold(sock, directory, time.monotonic() + float(request["deadline_s"]))
        finally:
            if held:
                _thaw(directory)
            os.close(directory)


def _sync(directory: int) -> None:
    # What it cannot write is told by the freeze.
    with suppress(OSError):
        syscalls.syncfs(directory)
    os.close(directory)


def _hold(sock: socket.socket, directory: int, deadline: float) -> bool:
    """Serve until the freeze is over; whether it is still ours to undo."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not wire.is_readable(sock, left):
            return True
        try:
            request, _ = wire.receive(sock)
        except OSError:
            return True
        if request is None:
            return True
        if request["op"] == "thaw":
            _answer(sock, request, {"was_frozen": _thaw(directory)})
            return False
        if request["op"] == "seal":
            _answer(sock, request, {"sealed": _seal(directory)})
        if request["op"] == "check":
            _answer(sock, request, {"frozen": _still_frozen(directory)})


def _still_frozen(directory: int) -> bool:
    # A second freeze is refused with EBUSY while the first holds. One that succeeds shows that
    # somebody thawed; it is kept, so that no further write happens until the guard thaws.
    try:
        fs.freeze(directory)
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _seal(directory: int) -> bool:
    """Shut the frozen filesystem down, so that a thaw lets nobody's write through any more."""
    if not _still_frozen(directory):
        return False
    try:
        fs.shutdown(directory)
    except OSError:
        return False
    return True


def _thaw(directory: int) -> bool:
    try:
        fs.thaw(directory)
    except OSError:
        return False
    return True


def _answer(sock: socket.socket, request: dict[str, Any], message: dict[str, Any]) -> None:
    # Without a listener the guard still has to thaw: a broken socket must not end it.
    try:
        wire.reply(sock, request, message)
    except OSError:
        return
