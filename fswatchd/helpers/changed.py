"""Files of a live ext filesystem that changed lately: find them, and open them.

They stand in its clone's inodes, or in those that the live filesystem has in memory, which are read
from its device: nothing else has to be read, however many files there are. Where timestamps are
only in memory (`lazytime`, mount(8)), the tree is walked.

Of a tenant's tree only regular files are opened, through a detached mount: by their inode, or by
names relative to directories that are already open. Symbolic links are never followed, other
filesystems never entered.
"""

from __future__ import annotations

import heapq
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fswatchd.kernel import syscalls
from fswatchd.kernel.extfile import Files, Inode

_MAX_DEPTH = 200


class Changed(NamedTuple):
    """A regular file that changed lately, opened by its `path` below the mount where it has one."""

    ctime: float
    inode: int
    generation: int
    path: str | None = None


def held(device: int, request: dict[str, Any]) -> list[Changed]:
    """The files that changed at or after `since`, by the inodes that are in memory of a device.

    Here as in `walked`: so many as `limit` and one more at the most, those that changed last.
    """
    return _last(_of(Files(device).changed(request["since"], in_memory=True)), request)


def walked(mount: int, request: dict[str, Any]) -> tuple[list[Changed], dict[str, int]]:
    """The same by their names, and how many directories could not be read."""
    answer = {"unreadable": 0}
    return _last(_below(mount, request["since"], answer), request), answer


def and_of_clone(found: list[Changed], clone: int, request: dict[str, Any]) -> list[Changed]:
    """What was `found`, and what else changed by the inodes of the clone."""
    live = {one.inode for one in found}
    more = (one for one in _of(Files(clone).changed(request["since"])) if one.inode not in live)
    return _last(itertools.chain(found, more), request)


def _last(found: Iterable[Changed], request: dict[str, Any]) -> list[Changed]:
    return heapq.nlargest(request["limit"] + 1, found)


def _of(groups: Iterable[list[Inode]]) -> Iterator[Changed]:
    for group in groups:
        for inode in group:
            yield Changed(inode.ctime, inode.number, inode.generation)


def _below(mount: int, since: float, answer: dict[str, int]) -> Iterator[Changed]:
    for path, entry in entries(mount, answer):
        if entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            if status.st_ctime >= since:
                yield Changed(status.st_ctime, status.st_ino, 0, path)


def entries(mount: int, answer: dict[str, int]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All below the mount with their paths, and not in other filesystems that are mounted there.

    Directories that cannot be read are counted in `answer`.
    """
    device = os.stat(".", dir_fd=mount).st_dev
    pending: list[tuple[str, int]] = [("", 0)]
    while pending:
        path, depth = pending.pop()
        try:
            directory = _walk(mount, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            answer["unreadable"] += 1
            continue
        try:
            if os.fstat(directory).st_dev != device:
                continue
            with os.scandir(directory) as found:
                for entry in found:
                    inside = f"{path}/{entry.name}" if path else entry.name
                    if depth < _MAX_DEPTH and entry.is_dir(follow_symlinks=False):
                        pending.append((inside, depth + 1))
                    yield inside, entry
        except OSError:
            answer["unreadable"] += 1  # damaged: what it still gave was good
        finally:
            os.close(directory)


def open_file(root: int, one: Changed) -> int:
    """The file, where it is still the one that was found. Raises OSError, ValueError."""
    flags = os.O_RDONLY | os.O_NONBLOCK
    if one.path is None:
        handle = Inode(one.inode, one.generation, one.ctime).handle
        source = syscalls.open_by_handle(root, Inode.HANDLE, handle, flags)
    else:
        source = _walk(root, one.path, flags)
    status, device = os.fstat(source), os.fstat(root).st_dev
    if (status.st_dev, status.st_ino) == (device, one.inode) and stat.S_ISREG(status.st_mode):
        return source
    os.close(source)
    raise ValueError("it was replaced meanwhile")


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
