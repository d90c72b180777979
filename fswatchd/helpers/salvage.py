"""Helper process: find and copy files that a live filesystem shows and its clone lacks.

Reads a tenant's tree through a detached mount: names are used only relative to directories that
are already open, symbolic links are never followed, other filesystems never entered. Lists go
through files that the daemon opens, one JSON value a line.
"""

from __future__ import annotations

import heapq
import json
import os
import socket
import stat
from typing import IO, Any

from fswatchd.helpers import wire

_CHUNK = 1 << 20
_MAX_DEPTH = 200


def main(fd: int) -> None:
    """Serve requests until the daemon closes the socket."""
    with socket.socket(fileno=fd) as sock:
        while True:
            request, fds = wire.receive(sock)
            if request is None:
                return
            mount, exchange = fds
            try:
                with os.fdopen(exchange, "r+", encoding="utf-8", errors="surrogateescape") as file:
                    serve = list_changed if request["op"] == "list" else copy_unsaved
                    answer = serve(mount, file, request)
            except OSError as error:
                answer = {"errno": error.errno or 5, "message": error.strerror or str(error)}
            finally:
                os.close(mount)
            wire.reply(sock, request, answer)


def list_changed(mount: int, found: IO[str], request: dict[str, Any]) -> dict[str, Any]:
    """Write `[path, inode, size]` of regular files whose inode changed at or after `since`.

    The newest first, `limit` of them at the most: those are what may not have reached the disk.
    """
    newest: list[tuple[float, str, int, int]] = []
    unreadable, cut = 0, False
    device = os.fstat(mount).st_dev
    pending: list[tuple[str, int]] = [("", 0)]
    while pending:
        path, depth = pending.pop()
        try:
            directory = _walk(mount, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            unreadable += 1
            continue
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    inside = f"{path}/{entry.name}" if path else entry.name
                    if status.st_dev != device:
                        continue
                    if stat.S_ISDIR(status.st_mode) and depth < _MAX_DEPTH:
                        pending.append((inside, depth + 1))
                    elif stat.S_ISREG(status.st_mode) and status.st_ctime >= request["since"]:
                        one = (status.st_ctime, inside, status.st_ino, status.st_size)
                        if len(newest) < request["limit"]:
                            heapq.heappush(newest, one)
                        else:
                            heapq.heappushpop(newest, one)
                            cut = True
        except OSError:
            unreadable += 1  # a damaged directory: what it still gave is in the list
        finally:
            os.close(directory)
    for _, *told in sorted(newest, reverse=True):
        found.write(json.dumps(told) + "\n")
    return {"unreadable": unreadable, "cut": cut}


def copy_unsaved(mount: int, wanted: IO[str], request: dict[str, Any]) -> dict[str, Any]:
    """Copy each listed file whose content is not that of the clone's; append what became of it.

    `wanted` has a line `[path, inode, size, name]` a file; the clone's content is `known`/inode, a
    copy goes to `target`/name and has `size` bytes at most.
    """
    outcomes = []
    for line in wanted.read().splitlines():
        path, inode, size, name = json.loads(line)
        target = os.path.join(request["target"], name)
        try:
            outcome = _copy_one(mount, path, inode, size, f"{request['known']}/{inode}", target)
        except OSError as error:
            outcome = f"failed: {error.strerror}"
        if outcome != "same":
            outcomes.append([path, outcome])
    wanted.seek(0)
    wanted.truncate()
    wanted.writelines(json.dumps(outcome) + "\n" for outcome in outcomes)
    return {}


def _copy_one(mount: int, path: str, inode: int, size: int, known: str, target: str) -> str:
    source = _walk(mount, path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if os.fstat(source).st_ino != inode:
            return "failed: it was replaced meanwhile"
        if _same_content(source, known):
            return "same"
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        copy = os.open(target, flags, 0o600)
        try:
            outcome = _copy_content(source, copy, size)
        except OSError:
            os.unlink(target)
            raise
        finally:
            os.close(copy)
        if outcome != "copied":
            os.unlink(target)
        return outcome
    finally:
        os.close(source)


def _copy_content(source: int, copy: int, size: int) -> str:
    os.lseek(source, 0, os.SEEK_SET)
    left = size
    while chunk := os.read(source, _CHUNK):
        left -= len(chunk)
        if left < 0:
            return "failed: it has grown meanwhile"
        _write_all(copy, chunk)
    os.fsync(copy)
    return "copied"


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _same_content(source: int, known: str) -> bool:
    try:
        with open(known, "rb") as file:
            while True:
                chunk = os.read(source, _CHUNK)
                if chunk != file.read(len(chunk) or 1):
                    return False
                if not chunk:
                    return True
    except FileNotFoundError:
        return False


def _walk(mount: int, path: str, last_flags: int) -> int:
    parts = path.split("/") if path else ["."]
    current = os.dup(mount)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        flags = last_flags if last else os.O_PATH | os.O_DIRECTORY
        try:
            following = os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current
