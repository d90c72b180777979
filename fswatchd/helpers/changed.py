"""Files of a live ext filesystem that changed lately: find them, and open them.

They stand in its clone's inodes, or in those that the live filesystem has in memory, which are read
from its device: nothing else has to be read, however many files there are. Where timestamps are
only in memory (`lazytime`, mount(8)), the tree is walked.

Of a tenant's tree only regular files are opened, through a detached mount: by their inode, or by
their names. Symbolic links are never followed, other filesystems never entered.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fswatchd.devno import Devno
from fswatchd.kernel import openfiles, syscalls
from fswatchd.kernel.extfile import Files, Inode

_MAX_DEPTH = 200
_EVER = float("-inf")


class Changed(NamedTuple):
    """A regular file that changed lately, opened by its `path` below the mount where it has one."""

    ctime: float
    inode: int
    generation: int
    path: str | None = None


def held(device: int, request: dict[str, Any]) -> list[Changed]:
    """The files that changed last, by the inodes that are in memory of a device.

    Here as in `walked`: so many as `limit` and one more at the most, the newest first.
    """
    return _last(_of(Files(device).changed(_EVER, in_memory=True)), request)


def walked(mount: int, request: dict[str, Any]) -> tuple[list[Changed], int]:
    """The same by their names, and how many directories could not be read."""
    problems: list[str] = []
    return _last(_below(mount, problems), request), len(problems)


def in_all(
    found: list[Changed], device: int, clone: int, request: dict[str, Any]
) -> tuple[list[Changed], bool]:
    """What may differ: what tasks of the VE use, and what changed lately, `limit` of these.

    Lately is `before_s` before `until`, or before the last change of all, whichever is earlier: it
    may be long ago that writes were stopped. The second value says that there were more.
    """
    last = max((one.ctime for one in found), default=request["until"])
    since = min(request["until"], last) - request["before_s"]
    live = {one.inode for one in found}
    more = (one for one in _of(Files(clone).changed(since)) if one.inode not in live)
    lately = [one for one in _last(itertools.chain(found, more), request) if one.ctime >= since]
    cut = len(lately) > request["limit"]
    chosen = {one.inode: one for one in lately[: request["limit"]]}
    for one in _used(device, request):
        chosen.setdefault(one.inode, one)
    return list(chosen.values()), cut


def _used(device: int, request: dict[str, Any]) -> Iterator[Changed]:
    """The files that tasks in the VE's mount namespaces have open or mapped, in some order.

    What is stored through a mapping once the kernel has stopped writes is in memory only, and no
    inode tells of it.
    """
    devno, namespaces = Devno(*request["devno"]), set(request["namespaces"])
    inodes = {one.inode for one in openfiles.held(devno, namespaces) if one.inode}
    files = Files(device)
    for number in sorted(inodes | openfiles.mapped(devno, namespaces))[: request["limit"]]:
        if inode := files.inode(number):
            yield Changed(inode.ctime, inode.number, inode.generation)


def _last(found: Iterable[Changed], request: dict[str, Any]) -> list[Changed]:
    return heapq.nlargest(request["limit"] + 1, found)


def _of(groups: Iterable[list[Inode]]) -> Iterator[Changed]:
    for group in groups:
        for inode in group:
            yield Changed(inode.ctime, inode.number, inode.generation)


def _below(mount: int, problems: list[str]) -> Iterator[Changed]:
    for path, entry in entries(mount, problems):
        try:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield Changed(status.st_ctime, status.st_ino, 0, path)
        except OSError:
            problems.append(path)  # often why there is anything to repair


def entries(mount: int, problems: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All below the mount with their paths, and not in other filesystems that are mounted there.

    Directories that cannot be read are added to `problems`.
    """
    pending: list[tuple[str, int]] = [(".", 0)]
    while pending:
        path, depth = pending.pop()
        try:
            directory = _open_path(mount, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno != errno.EXDEV:
                problems.append(path)
            continue
        try:
            with os.scandir(directory) as found:
                for entry in found:
                    inside = f"{path}/{entry.name}" if path != "." else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if depth < _MAX_DEPTH:
                            pending.append((inside, depth + 1))
                        else:
                            problems.append(inside)
                    yield inside, entry
        except OSError:
            problems.append(path)  # damaged: what it still gave was good
        finally:
            os.close(directory)


def open_file(root: int, one: Changed) -> int:
    """The file, where it is still the one that was found. Raises OSError, ValueError.

    What it is is asked before it is really opened: another kind of file may do something then.
    """
    if one.path is None:
        handle = Inode(one.inode, one.generation, one.ctime).handle
        place = syscalls.open_by_handle(root, Inode.HANDLE, handle, os.O_PATH)
    else:
        place = _open_path(root, one.path, os.O_PATH)
    try:
        status = os.fstat(place)
        if status.st_ino != one.inode or not stat.S_ISREG(status.st_mode):
            raise ValueError("it was replaced meanwhile")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)


def _open_path(mount: int, path: str, flags: int) -> int:
    """Open what is below a mount, through no link and no other mount: EXDEV, before either acts."""
    if path == ".":
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=mount)
    never = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    return syscalls.openat2(mount, path, flags | os.O_CLOEXEC, never)
