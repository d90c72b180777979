"""Helper process: find and copy files that a live filesystem shows and its clone lacks.

Reads a tenant's tree through a detached mount: names are used only relative to directories that
are already open, symbolic links are never followed, other filesystems never entered. What it finds
goes through a file that the daemon opens, one JSON value a line.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

from fswatchd.helpers import wire
from fswatchd.kernel import extents, pagecache
from fswatchd.kernel.extfile import File, Files

_CHUNK = 1 << 20
_MAX_DEPTH = 200
# The newest are looked at first; of so many at a time the ones that lie together on the disk.
_AT_ONCE = 2000
_MOST_BLINDLY = 1 << 30
_UNSAFE = re.compile(r"[^\w.+-]", re.ASCII)
_LONGEST_NAME = 80


class Changed(NamedTuple):
    """A regular file whose inode changed lately; `path` is below the mount."""

    ctime: float
    path: str
    inode: int
    size: int


def main(fd: int) -> None:
    """Serve requests until the daemon closes the socket: `list`, then `copy` what was listed."""
    found: list[Changed] = []
    with socket.socket(fileno=fd) as sock:
        while True:
            request, fds = wire.receive(sock)
            if request is None:
                return
            try:
                if request["op"] == "list":
                    found, answer = list_changed(fds[0], request["since"], request["limit"])
                else:
                    mount, clone, told = fds
                    with open(told, "w", encoding="utf-8", errors="surrogateescape") as file:
                        fds.remove(told)
                        answer = copy_unsaved(mount, clone, found, file, request)
            except (OSError, ValueError) as error:
                code, text = getattr(error, "errno", 0), getattr(error, "strerror", None)
                answer = {"errno": code or 5, "message": text or str(error)}
            finally:
                for each in fds:
                    os.close(each)
            wire.reply(sock, request, answer)


def list_changed(mount: int, since: float, limit: int) -> tuple[list[Changed], dict[str, Any]]:
    """The regular files whose inode changed at or after `since`, and what could not be seen.

    The newest first, `limit` of them at the most: those are what may not have reached the disk.
    """
    newest: list[Changed] = []
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
                    elif stat.S_ISREG(status.st_mode) and status.st_ctime >= since:
                        one = Changed(status.st_ctime, inside, status.st_ino, status.st_size)
                        if len(newest) < limit:
                            heapq.heappush(newest, one)
                        else:
                            heapq.heappushpop(newest, one)
                            cut = True
        except OSError:
            unreadable += 1  # a damaged directory: what it still gave is in the list
        finally:
            os.close(directory)
    newest.sort(reverse=True)
    return newest, {"found": len(newest), "unreadable": unreadable, "cut": cut}


def copy_unsaved(
    mount: int, clone: int, found: list[Changed], told: IO[str], request: dict[str, Any]
) -> dict[str, Any]:
    """Copy each file whose content is not that of the clone's; `told` gets `[path, outcome]` each.

    Copies go to the directory `target`, the smallest first, and have `max_bytes` together at the
    most. Half of `within_s` is for comparing; how many files were not is in the answer.
    """
    began, seen = time.monotonic(), 0
    unsaved: list[Changed] = []
    outcomes: list[tuple[str, str]] = []
    for one, known in _in_order(Files(clone), found):
        if time.monotonic() - began > request["within_s"] / 2:
            break
        seen += 1
        try:
            if not _is_saved(mount, one, clone, known):
                unsaved.append(one)
        except (OSError, ValueError) as error:
            outcomes.append((one.path, _failed(error)))
    unsaved.sort(key=lambda one: one.size)
    outcomes += _copies(mount, unsaved, request, began + request["within_s"])
    told.writelines(json.dumps(outcome) + "\n" for outcome in outcomes)
    return {"unseen": len(found) - seen}


def _copies(
    mount: int, unsaved: list[Changed], request: dict[str, Any], until: float
) -> Iterator[tuple[str, str]]:
    if not unsaved:
        return
    target, left = request["target"], request["max_bytes"]
    os.makedirs(target, mode=0o700, exist_ok=True)
    for number, one in enumerate(unsaved):
        if time.monotonic() > until:
            yield one.path, "failed: there was no time left"
        elif one.size > left:
            yield one.path, "failed: it is larger than what may still be copied"
        else:
            left -= one.size
            try:
                _copy_one(mount, one, os.path.join(target, f"{number:05d}-{_safe(one.path)}"))
                yield one.path, "copied"
            except (OSError, ValueError) as error:
                yield one.path, _failed(error)
    directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)
    with suppress(OSError):
        os.rmdir(target)  # nothing could be copied


def _failed(error: OSError | ValueError) -> str:
    return f"failed: {getattr(error, 'strerror', None) or error}"


def _in_order(
    files: Files, found: list[Changed]
) -> Iterator[tuple[Changed, File | Exception | None]]:
    """Each with its file in the clone, None where there is none, or why it cannot be read there."""
    waiting = iter(found)
    while batch := list(itertools.islice(waiting, _AT_ONCE)):
        known = [(one, _known(files, one.inode)) for one in batch]
        yield from sorted(known, key=lambda pair: _place(pair[1]))


def _known(files: Files, inode: int) -> File | Exception | None:
    try:
        return files.file(inode)
    except (OSError, ValueError) as error:
        return error


def _place(known: File | Exception | None) -> int:
    return known.extents[0].place or 0 if isinstance(known, File) and known.extents else 0


def _is_saved(mount: int, one: Changed, clone: int, known: File | Exception | None) -> bool:
    if isinstance(known, Exception):
        raise known
    if known is None or known.size != one.size:
        return False
    source = _open(mount, one)
    try:
        return _is_same(source, clone, known)
    finally:
        os.close(source)


def _open(mount: int, one: Changed) -> int:
    """The file, where it is still the one that was listed. Raises OSError, ValueError."""
    source = _walk(mount, one.path, os.O_RDONLY | os.O_NONBLOCK)
    status = os.fstat(source)
    if status.st_ino == one.inode and stat.S_ISREG(status.st_mode) and status.st_size == one.size:
        return source
    os.close(source)
    raise ValueError("it was replaced or changed meanwhile")


def _is_same(source: int, clone: int, known: File) -> bool:
    """Whether an open file has the content that the clone's has, which is as long.

    What lies in the same blocks, and of which nothing is in memory, is read from what both have.
    """
    for start, end in _may_differ(source, known):
        for at in range(start, end, _CHUNK):
            length = min(_CHUNK, end - at)
            if os.pread(source, length, at) != known.read(clone, at, length):
                return False
    return True


def _may_differ(source: int, known: File) -> Iterator[tuple[int, int]]:
    if known.size == 0:
        return
    if known.inline is not None:
        yield 0, known.size
        return
    try:
        here = extents.of(source, sync=False)
    except OSError:
        yield 0, known.size
        return
    yield from extents.not_shared(here, known.extents, known.size)
    yield from _in_memory(source, 0, known.size)


def _in_memory(source: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of which pages are in memory, in pieces of `_CHUNK` bytes."""
    pages = pagecache.pages(source, start, end - start)
    if pages == 0:
        return
    if pages is None and end - start > _MOST_BLINDLY:
        raise ValueError("it is too large, and the kernel does not tell what of it is in memory")
    if end - start <= _CHUNK:
        yield start, end
        return
    middle = start + max((end - start) // 2 // _CHUNK, 1) * _CHUNK
    yield from _in_memory(source, start, middle)
    yield from _in_memory(source, middle, end)


def _safe(path: str) -> str:
    return _UNSAFE.sub("_", os.path.basename(path))[:_LONGEST_NAME]


def _copy_one(mount: int, one: Changed, target: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    source = _open(mount, one)
    try:
        copy = os.open(target, flags, 0o600)
        try:
            _copy_content(source, copy, one.size)
        except (OSError, ValueError):
            os.unlink(target)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _copy_content(source: int, copy: int, size: int) -> None:
    left = size
    while chunk := os.read(source, _CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ValueError("it has grown meanwhile")
        _write_all(copy, chunk)
    os.fsync(copy)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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
