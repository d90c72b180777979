"""What runs inside a scratch VE: a writer that syncs, a reader, and one who does as it is told.

Each reports over a socket that was connected before the VE entered its own root. Times are
CLOCK_MONOTONIC, which is the same inside and outside. When the drill is gone, so is the VE.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fswatchd.kernel import fs

ROLES = ("writer", "reader", "hand")
WORK = "/work"
FILE_SIZE = 4096

_WRITE_PAUSE_S = 0.004
_READ_PAUSE_S = 0.002
_RETRY_PAUSE_S = 0.005


def content(name: str) -> bytes:
    """What a file of this name holds: no two files are the same."""
    block = hashlib.sha256(name.encode()).digest()
    return block * (FILE_SIZE // len(block))


def connect(control: str, ve: str, roles: Iterable[str] = ROLES) -> dict[str, socket.socket]:
    """One connection a role, each introduced to the drill."""
    connections = {}
    for role in roles:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(control)
        connection.sendall(f"{ve} {role}\n".encode())
        connections[role] = connection
    return connections


def init(connections: dict[str, socket.socket], read_paths: list[str], tell: int) -> None:
    """Process 1 of the VE: starts the others and ends when one of them ends."""
    null = os.open("/null", os.O_RDWR | os.O_CREAT, 0o600)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with suppress(OSError):
        os.mkdir(WORK)
    work = {
        "writer": lambda connection: write_for_ever(connection),
        "reader": lambda connection: read_for_ever(connection, read_paths),
        "hand": lambda connection: obey(connection),
    }
    for role, connection in connections.items():
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with suppress(OSError):
                work[role](connection)
            os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.write(tell, b"ready\n")
    os.close(tell)
    os.wait()
    os._exit(0)


def write_for_ever(connection: socket.socket) -> None:
    """Create a file, sync it, and only then say so."""
    start = time.monotonic_ns()
    number = 0
    while True:
        name = f"{WORK}/w{start}-{number:06d}"
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, content(name))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            connection.sendall(f"E {time.monotonic_ns()} {error.errno}\n".encode())
            time.sleep(_RETRY_PAUSE_S)
            number += 1
            continue
        connection.sendall(f"A {time.monotonic_ns()} {name}\n".encode())
        number += 1
        time.sleep(_WRITE_PAUSE_S)


def read_for_ever(connection: socket.socket, paths: list[str]) -> None:
    """Read one file after the other, from the device and not from the cache."""
    number = 0
    while True:
        try:
            fd = os.open(paths[number % len(paths)], os.O_RDONLY)
            try:
                os.read(fd, FILE_SIZE)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        except OSError as error:
            connection.sendall(f"E {time.monotonic_ns()} {error.errno}\n".encode())
        else:
            connection.sendall(f"R {time.monotonic_ns()}\n".encode())
        number += 1
        time.sleep(_READ_PAUSE_S)


def obey(connection: socket.socket) -> None:
    """Serve requests, one JSON line each, answered by JSON lines up to one with `done`."""
    with connection.makefile("rwb") as lines:
        for line in lines:
            for answer in _serve(json.loads(line)):
                lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


def _serve(request: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return [*_DO[request["op"]](request), {"done": True}]
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        return [{"done": True, "errno": error.errno, "error": name}]


def _list(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"names": len(os.listdir(request["path"]))}]


def _stat(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"inode": os.lstat(request["path"]).st_ino}]


def _read(request: dict[str, Any]) -> list[dict[str, Any]]:
    with open(request["path"], "rb") as file:
        return [{"bytes": len(file.read())}]


def _write(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a file of so many bytes and sync it; which inode it is, and how that ended."""
    fd = os.open(request["path"], os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        answer: dict[str, Any] = {"inode": os.fstat(fd).st_ino, "failed": None}
        try:
            os.write(fd, os.urandom(int(request["size"])))
            os.fsync(fd)
        except OSError as error:
            answer["failed"] = error.errno
    finally:
        with suppress(OSError):
            os.close(fd)
    return [answer]


def _churn(_request: dict[str, Any]) -> list[dict[str, Any]]:
    """Go on replacing files, as careful programs do: write, sync, rename, sync the directory."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(OSError):
            _replace_for_ever("/churn")
        os._exit(0)
    return []


def _replace_for_ever(directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    number = 0
    while True:
        new = f"{directory}/new-{number}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, os.urandom(FILE_SIZE * (1 + number % 7)))
        os.fsync(fd)
        os.close(fd)
        os.rename(new, f"{directory}/file-{number % 50}")
        os.fsync(parent)
        if number % 20 == 0:
            shutil.rmtree(f"{directory}/tree", ignore_errors=True)
            os.makedirs(f"{directory}/tree/{number}/deeper")
        number += 1


def _abort(_request: dict[str, Any]) -> list[dict[str, Any]]:
    return _on_root(fs.abort)


def _shutdown(request: dict[str, Any]) -> list[dict[str, Any]]:
    # That the kernel acknowledges what it drops is no fault of the repair that is tried here.
    return _on_root(lambda root: fs.shutdown(root, settled=not request.get("at_once")))


def _on_root(action: Any) -> list[dict[str, Any]]:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        action(root)
    finally:
        os.close(root)
    return []


def _manifest(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Path and digest of every regular file, or of those below a path."""
    found: list[dict[str, Any]] = []
    for directory, _, names in os.walk(request.get("path", "/")):
        for name in names:
            path = os.path.join(directory, name)
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):
                    continue  # to open a FIFO waits for a writer
                with open(path, "rb") as file:
                    found.append({"path": path, "digest": hashlib.sha256(file.read()).hexdigest()})
            except OSError as error:
                found.append({"path": path, "errno": error.errno})
    return found


_DO = {
    "list": _list,
    "stat": _stat,
    "read": _read,
    "write": _write,
    "churn": _churn,
    "abort": _abort,
    "shutdown": _shutdown,
    "manifest": _manifest,
}
