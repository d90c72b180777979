"""Reach a mount of another mount namespace without following anything its owner put there.

`enter` changes the calling process for good, so it is for helper processes only.
"""

import contextlib
import os
import re
import time

from fswatchd.devno import Devno

from . import mountinfo, pseudofile
from .syscalls import (
    CLONE_NEWNS,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    device_of,
    open_tree_clone,
    openat2,
    setns,
)

# A lookup in the cache alone gives up (EAGAIN) also when anybody mounts or renames meanwhile.
# On a node where a thousand VEs start that can be for tenths of a second.
_ATTEMPTS = 300
_PAUSE_S = 0.002


class WrongFilesystemError(OSError):
    """The path leads to another filesystem than the one that was asked for."""


def enter(ns_fd: int) -> None:
    """Make the mount namespace behind `ns_fd` that of this process."""
    setns(ns_fd, CLONE_NEWNS)


def open_mount(path: str, expected: Devno, own_proc: int) -> int:
    """A detached mount (see `open_tree_clone`) of the filesystem mounted at `path`.

    `path` is resolved in the current mount namespace. It is looked up in the dentry cache only,
    where mount points and their parents always are, so the lookup cannot block on a filesystem
    that does not answer, and neither can the question for its device; symbolic links are refused.
    Raises WrongFilesystemError when another filesystem is found there, OSError else.

    `own_proc` is a descriptor on this process's directory in a trusted /proc. btrfs gives every
    subvolume a device number of its own, and a shut-down XFS refuses stat(2); for both the mount
    table has the superblock's number.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_CACHED
        place = _open_cached(root, path.lstrip("/") or ".", resolve)
    finally:
        os.close(root)
    try:
        found = _stat_devno(place)
        if found != expected:
            found = _mount_devno(place, own_proc)
        if found != expected:
            raise WrongFilesystemError(116, f"device {found} instead of {expected}", path)
        return open_tree_clone(place)
    finally:
        os.close(place)


def _open_cached(root: int, path: str, resolve: int) -> int:
    for _ in range(_ATTEMPTS - 1):
        try:
            return openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
    return openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve)


def _stat_devno(place: int) -> Devno | None:
    with contextlib.suppress(OSError):
        return Devno(*device_of(place))
    return None


def _mount_devno(place: int, own_proc: int) -> Devno | None:
    """The device number of the superblock that the descriptor's mount shows, from mountinfo."""
    facts = pseudofile.read(f"fdinfo/{place}", own_proc).decode("ascii")
    mount_id = re.search(r"^mnt_id:\s*(\d+)$", facts, re.MULTILINE)
    if mount_id is None:
        return None
    for line in pseudofile.lines("mountinfo", own_proc):
        if line.startswith(f"{mount_id[1]} "):
            with contextlib.suppress(mountinfo.MountinfoError):
                return mountinfo.parse_line(line).devno
    return None
