"""Helper process: copy files that a live ext filesystem shows and its clone lacks.

Which ones may differ, and how a tenant's files are opened, is `changed`'s. What becomes of them
goes through a file that the daemon opens, one JSON value a line as soon as it is known: whatever
this process may hang at, what was done is told.
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
from typing import Any, NamedTuple

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
_NO_TIME = "there was no time left for it"


class Unsaved(NamedTuple):
    """One of which the clone has not the same, and what it is called."""

    size: int
    name: str
    one: Changed


class Compared(NamedTuple):
    """What has come of comparing: names and why (`unknown: why`) of what could not be, and how many
    there was no time for."""

    unsaved: list[Unsaved]
    unknown: list[tuple[str, str]]
    unseen: int


class Told:
    """What becomes of files: `copied`, `lost: why`, or `unknown: why` if it was not compared."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def add(self, name: str, outcome: str) -> None:
        """Write it down."""
        _write_all(self._fd, json.dumps([name, outcome]).encode() + b"\n")


def main(fd: int) -> None:
    """Serve requests until the daemon closes the socket: `held` or `walk`, `compare`, `copy`."""
    found: list[Changed] = []
    compared = Compared([], [], 0)
    answer: dict[str, Any]
    # Unlike the daemon this one may go when memory runs out.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")
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
                        found, unreadable = changed.walked(fds[0], request)
                        answer = {"unreadable": unreadable}
                    case "compare":
                        mount, device, clone = fds
                        chosen, cut = changed.in_all(found, device, clone, request)
                        compared = compare(mount, clone, chosen, request)
                        answer = {"unseen": compared.unseen, "cut": cut}
                    case _:
                        mount, told = fds
                        copy_unsaved(mount, compared, Told(told), request)
                        answer = {}
            except (OSError, ValueError) as error:
                code, text = getattr(error, "errno", 0), getattr(error, "strerror", None)
                answer = {"errno": code or errno.EIO, "message": text or str(error)}
            finally:
                for each in fds:
                    os.close(each)
            wire.reply(sock, request, answer)


def compare(mount: int, clone: int, chosen: list[Changed], request: dict[str, Any]) -> Compared:
    """Find the files whose content is not that of the clone's, `within_s`. Changes nothing."""
    seen, until = 0, time.monotonic() + request["within_s"]
    unsaved: list[Unsaved] = []
    unknown: list[tuple[str, str]] = []
    root = _root_of(mount)
    try:
        files = Files(clone)
        for one in _in_order(files, chosen, until):
            if time.monotonic() > until:
                break
            seen += 1
            try:
                unsaved += _differing(root, one, clone, files, until)
            except (OSError, ValueError) as error:
                unknown.append((one.path or f"#{one.inode}", f"unknown: {_why(error)}"))
    finally:
        os.close(root)
    return Compared(unsaved, unknown, len(chosen) - seen)


def copy_unsaved(mount: int, compared: Compared, told: Told, request: dict[str, Any]) -> None:
    """Copy each file whose content is not that of the clone's, and tell of those that were not.

    Copies go to the directory `target`, the smallest first, and have `max_bytes` together at the
    most. Half of `within_s` is for names.
    """
    began = time.monotonic()
    for name, why in compared.unknown:
        told.add(name, why)
    root = _root_of(mount)
    try:
        named = sorted(_named(mount, compared.unsaved, began + request["within_s"] / 2))
        _copy_all(root, named, told, request, began + request["within_s"])
    finally:
        os.close(root)


def _root_of(mount: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)


def _in_order(files: Files, chosen: list[Changed], until: float) -> Iterator[Changed]:
    """A few at a time, those that lie together on the disk one after the other."""
    waiting = iter(chosen)
    while batch := list(itertools.islice(waiting, _AT_ONCE)):
        places = {}
        for one in batch:
            if time.monotonic() > until:
                break
            places[one.inode] = _place(files, one)
        yield from sorted(batch, key=lambda one: places.get(one.inode, 0))


def _place(files: Files, one: Changed) -> int:
    try:
        known = files.file(one.inode)
    except (OSError, ValueError):
        return 0
    return known.extents[0].place or 0 if known and known.extents else 0


def _differing(
    root: int, one: Changed, clone: int, files: Files, until: float
) -> Iterator[Unsaved]:
    """It, unless the clone has the same."""
    try:
        source = changed.open_file(root, one)
    except OSError as error:
        if error.errno in {errno.ESTALE, errno.ENOENT}:
            return  # deleted by now, or not yet when the clone was written
        raise
    try:
        status, known = os.fstat(source), files.file(one.inode)
        if not status.st_nlink:
            return  # it lives only as long as who has it open
        if known is not None and one.path is None and known.generation != one.generation:
            known = None  # another file, which had the number before
        size = status.st_size
        if known is None or known.size != size or not _is_same(source, clone, known, until):
            # What was opened by its inode has a path as long as the kernel remembers one.
            name = one.path or os.readlink(f"/proc/self/fd/{source}").strip("/")
            yield Unsaved(size, name, one)
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
        for path, entry in changed.entries(mount, []):
            if found := nameless.pop(entry.inode(), None):
                yield found._replace(name=path)
            if not nameless or time.monotonic() > until:
                break
    for inode, each in nameless.items():
        yield each._replace(name=f"#{inode}")


def _copy_all(
    root: int, unsaved: list[Unsaved], told: Told, request: dict[str, Any], until: float
) -> None:
    if not unsaved:
        return
    target, left = request["target"], request["max_bytes"]
    os.makedirs(target, mode=0o700, exist_ok=True)
    # A run that was cut off may have left some.
    earlier = [int(name[:5]) for name in os.listdir(target) if name[:5].isdecimal()]
    for number, (size, name, one) in enumerate(unsaved, max(earlier, default=-1) + 1):
        if size > left:
            told.add(name, f"lost: its {size} bytes are more than may still be copied")
            continue
        left -= size
        try:
            copy_one(root, one, size, f"{target}/{number:05d}-{safe(name)}", until)
        except (OSError, ValueError) as error:
            told.add(name, f"lost: {_why(error)}")
        else:
            told.add(name, "copied")
    with suppress(OSError):
        os.rmdir(target)  # nothing could be copied


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_same(source: int, clone: int, known: File, until: float) -> bool:
    """Whether an open file has the content that the clone's has, which is as long.

    What lies in the same blocks, and of which nothing is in memory, is read from what both have.
    """
    for start, end in _may_differ(source, known):
        for at in range(start, end, _CHUNK):
            if time.monotonic() > until:
                raise ValueError(_NO_TIME)
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


def safe(path: str) -> str:
    """The last part of a path that a tenant has chosen, as a name that hurts nobody."""
    return _UNSAFE.sub("_", os.path.basename(path))[:_LONGEST_NAME]


def copy_one(root: int, one: Changed, size: int, target: str, until: float) -> None:
    """Copy a file, which has its name only once it is whole. Raises OSError, ValueError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    directory, name = os.path.split(target)
    part = f"{directory}/.{name}"
    source = changed.open_file(root, one)
    try:
        copy = os.open(part, flags, 0o600)
        try:
            _copy_content(source, copy, size, until)
            os.rename(part, target)
        except (OSError, ValueError):
            os.unlink(part)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _copy_content(source: int, copy: int, size: int, until: float) -> None:
    left = size
    while chunk := os.read(source, _CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ValueError("it has grown meanwhile")
        if time.monotonic() > until:
            raise ValueError(_NO_TIME)
        _write_all(copy, chunk)
    os.fsync(copy)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
