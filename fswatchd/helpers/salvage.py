"""Helper process: copy files that a live ext filesystem shows and its clone lacks.

Which ones may differ, and how a tenant's files are opened, is `changed`'s. What becomes of them
goes through a file that the daemon opens, one JSON value a line.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

from fswatchd.helpers import changed, wire
from fswatchd.helpers.changed import Changed
from fswatchd.kernel import extents, pagecache
from fswatchd.kernel.extfile import File, Files

_CHUNK = 1 << 20
# The newest are looked at first; of so many at a time the ones that lie together on the disk.
_AT_ONCE = 2000
_MOST_BLINDLY = 1 << 30
_UNSAFE = re.compile(r"[^\w.+-]", re.ASCII)
_LONGEST_NAME = 80


class Unsaved(NamedTuple):
    """One of which the clone has not the same, and what it is called."""

    size: int
    name: str
    one: Changed


def main(fd: int) -> None:
    """Serve requests until the daemon closes the socket: `held` or `walk`, `clone`, `copy`."""
    found: list[Changed] = []
    answer: dict[str, Any]
    with socket.socket(fileno=fd) as sock:
        while True:
            request, fds = wire.receive(sock)
            if request is None:
                return
            try:
                match request["op"]:
                    case "held":
                        found, answer = changed.held(fds[0], request), {}
                    case "walk":
                        found, answer = changed.walked(fds[0], request)
                    case "clone":
                        found, answer = changed.and_of_clone(found, fds[0], request), {}
                    case _:
                        mount, clone, told = fds
                        with open(told, "w", encoding="utf-8", closefd=False) as file:
                            answer = copy_unsaved(mount, clone, found, file, request)
            except (OSError, ValueError) as error:
                code, text = getattr(error, "errno", 0), getattr(error, "strerror", None)
                answer = {"errno": code or errno.EIO, "message": text or str(error)}
            finally:
                for each in fds:
                    os.close(each)
            wire.reply(sock, request, answer)


def copy_unsaved(
    mount: int, clone: int, found: list[Changed], told: IO[str], request: dict[str, Any]
) -> dict[str, Any]:
    """Copy each file whose content is not that of the clone's; `told` gets `[path, outcome]` each.

    Copies go to the directory `target`, the smallest first, and have `max_bytes` together at the
    most. Half of `within_s` is for comparing; how many files were not is in the answer.
    """
    began, seen = time.monotonic(), 0
    cut = len(found) > request["limit"]
    chosen = found[: request["limit"]]
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    unsaved: list[Unsaved] = []
    outcomes: list[tuple[str, str]] = []
    try:
        for one, known in _in_order(Files(clone), chosen):
            if time.monotonic() - began > request["within_s"] / 2:
                break
            seen += 1
            try:
                unsaved += _differing(root, one, clone, known)
            except (OSError, ValueError) as error:
                outcomes.append((one.path or f"#{one.inode}", _failed(error)))
        unsaved = sorted(_named(mount, unsaved, began + request["within_s"] * 3 / 4))
        outcomes += _copies(root, unsaved, request, began + request["within_s"])
    finally:
        os.close(root)
    told.writelines(json.dumps(outcome) + "\n" for outcome in outcomes)
    return {"seen": seen, "unseen": len(chosen) - seen, "cut": cut}


def _differing(
    root: int, one: Changed, clone: int, known: File | Exception | None
) -> Iterator[Unsaved]:
    """It, unless the clone has the same."""
    try:
        source = changed.open_file(root, one)
    except OSError as error:
        if error.errno in {errno.ESTALE, errno.ENOENT}:
            return  # deleted by now, or not yet when the clone was written
        raise
    try:
        if isinstance(known, Exception):
            raise known
        size = os.fstat(source).st_size
        if known is None or known.size != size or not _is_same(source, clone, known):
            # What was opened by its inode has a path as long as the kernel remembers one.
            yield Unsaved(size, one.path or os.readlink(f"/proc/self/fd/{source}").strip("/"), one)
    finally:
        os.close(source)


def _named(mount: int, unsaved: list[Unsaved], until: float) -> Iterator[Unsaved]:
    """The same; what has no name gets its own, or that of its inode where none is found in time.

    A remount makes the kernel forget names (`shrink_dcache_sb`). Directories tell inodes too, so
    that none of those has to be read.
    """
    nameless = {each.one.inode: each for each in unsaved if not each.name}
    yield from (each for each in unsaved if each.name)
    if nameless:
        for path, entry in changed.entries(mount, {"unreadable": 0}):
            if found := nameless.pop(entry.inode(), None):
                yield found._replace(name=path)
            if not nameless or time.monotonic() > until:
                break
    for inode, each in nameless.items():
        yield each._replace(name=f"#{inode}")


def _copies(
    root: int, unsaved: list[Unsaved], request: dict[str, Any], until: float
) -> Iterator[tuple[str, str]]:
    if not unsaved:
        return
    target, left = request["target"], request["max_bytes"]
    os.makedirs(target, mode=0o700, exist_ok=True)
    earlier = len(os.listdir(target))  # of a run that was cut off
    for number, (size, name, one) in enumerate(unsaved, earlier):
        if time.monotonic() > until:
            yield name, "failed: there was no time left"
        elif size > left:
            yield name, "failed: it is larger than what may still be copied"
        else:
            left -= size
            try:
                _copy_one(root, one, size, os.path.join(target, f"{number:05d}-{_safe(name)}"))
                yield name, "copied"
            except (OSError, ValueError) as error:
                yield name, _failed(error)
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
    if known.size > _MOST_BLINDLY and pagecache.pages(source, 0, known.size) is None:
        raise ValueError("it is too large, and the kernel does not tell what of it is in memory")
    yield from pagecache.ranges(source, 0, known.size, _CHUNK)


def _safe(path: str) -> str:
    return _UNSAFE.sub("_", os.path.basename(path))[:_LONGEST_NAME]


def _copy_one(root: int, one: Changed, size: int, target: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    source = changed.open_file(root, one)
    try:
        copy = os.open(target, flags, 0o600)
        try:
            _copy_content(source, copy, size)
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
