"""Which files of a filesystem processes hold open, and who keeps a mount from being unmounted.

The filesystem itself is asked nothing. /proc/PID/fdinfo names the mount and the inode of each
descriptor (proc_pid_fdinfo(5), `ino` since Linux 5.14), and the link in /proc/PID/fd its path:
neither waits for a filesystem that has stopped.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fswatchd.devno import Devno

from . import mountinfo, proc
from .mounts import Mount

_DELETED = " (deleted)"
_PLACES = ("cwd", "root", "exe")
_BASE = {"mnt_id": 10, "ino": 10, "flags": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One descriptor. `path` is as the process sees it; `deleted` where it has no name any more.

    `inside` is its path from the root of the filesystem, None where it is outside of the mount that
    it was opened through. `inode` is None on kernels that do not tell.
    """

    pid: int
    fd: int
    inode: int | None
    path: str
    inside: str | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a mount busy: where a process stands (`cwd`, `root`, `exe`) or a descriptor.

    `path` is as seen in the mount namespace that it was opened in. Who `writes` waits for a thaw
    where the filesystem is frozen, and may let go then.
    """

    pid: int
    by: str
    path: str
    writes: bool = False


def held(devno: Devno, namespaces: Collection[int]) -> Iterator[OpenFile]:
    """Descriptors on the filesystem of processes in these mount namespaces (inode numbers)."""
    for pid in proc.pids():
        if proc.mount_namespace_inode(pid) in namespaces:
            with suppress(OSError):
                yield from _of(pid, devno)


def mapped(devno: Devno, namespaces: Collection[int]) -> set[int]:
    """Inodes of the files that processes in these mount namespaces may write to through memory.

    Those that are mapped shared and writable (proc_pid_maps(5)). Waits for a process that is busy
    with its mappings.
    """
    found: set[int] = set()
    for pid in proc.pids():
        if proc.mount_namespace_inode(pid) in namespaces:
            with suppress(OSError, ValueError), open(f"/proc/{pid}/maps", "rb") as maps:
                for line in maps:
                    _, access, _, device, inode, *_ = line.split(maxsplit=5)
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    if b"w" in access and b"s" in access and Devno(major, minor) == devno:
                        found.add(int(inode))
    return found


def holds(pid: int, mount_ids: Collection[int], points: Collection[str]) -> Iterator[Hold]:
    """By what a process keeps these mounts busy (`proc_id`), mounted there in its namespace.

    A descriptor may be on a mount of another namespace; of `_PLACES` only the path is known, as
    asking for their mount would be asking the filesystem. Files that are only mapped are not seen.
    """
    for place in _PLACES:
        with suppress(OSError):
            path = os.readlink(f"/proc/{pid}/{place}").removesuffix(_DELETED)
            if any(_is_below(path, point) for point in points):
                yield Hold(pid, place, path)
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError, ValueError):
                path = os.readlink(f"/proc/{pid}/fd/{name}").removesuffix(_DELETED)
                if not path.startswith("/"):
                    continue
                facts = _facts(pid, name)
                if facts.get("mnt_id") in mount_ids:
                    yield Hold(pid, name, path, facts["flags"] & os.O_ACCMODE != os.O_RDONLY)


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(f"{point.rstrip('/')}/")


def _of(pid: int, devno: Devno) -> Iterator[OpenFile]:
    mounts = {mount.mount_id: mount for mount in mountinfo.read(pid) if mount.devno == devno}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError, ValueError):
            facts = _facts(pid, name)
            mount = mounts.get(facts.get("mnt_id", 0))
            if mount is None:
                continue
            path = os.readlink(f"/proc/{pid}/fd/{name}")
            yield OpenFile(
                pid=pid,
                fd=int(name),
                inode=facts.get("ino"),
                path=path.removesuffix(_DELETED),
                inside=_inside(mount, path.removesuffix(_DELETED)),
                deleted=path.endswith(_DELETED),
            )


def _inside(mount: Mount, path: str) -> str | None:
    point = mount.point.rstrip("/")
    if not path.startswith(f"{point}/"):
        return None
    return mount.root.rstrip("/") + path[len(point) :]


def _facts(pid: int, fd: str) -> dict[str, int]:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {key: int(value, _BASE[key]) for key, _, value in pairs if key in _BASE}
