"""Read who mounts what from the kernel: all mounts of all mount namespaces.

Two ways: namespace iteration with listmount and statmount (Linux 6.12), which also finds
namespaces that no process is in, and /proc/*/mountinfo, one process a namespace. Neither walks a
path, and no descriptor of a namespace is kept: it would keep the namespace's mounts alive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from fswatchd.inventory.model import SCANNED_FILESYSTEMS, NamespaceKey, is_remote
from fswatchd.kernel import mountinfo, mounts, proc
from fswatchd.kernel.mounts import Mount

MountTable = Mapping[NamespaceKey, list[Mount]]


class MountScanner(Protocol):
    """A way to read all mounts."""

    name: str

    def scan(self, on_namespace: Callable[[NamespaceKey, int], None] | None = None) -> MountTable:
        """Mounts of disk filesystems, of overlays and of what others serve, by namespace.

        `on_namespace` is called with each namespace's key and a descriptor that is closed
        after the call.
        """
        ...

    def current(self, namespace: NamespaceKey, mount: Mount) -> Mount | None:
        """The mount as it is at this moment, options included; None when it is gone."""
        ...

    def namespaces_changed(self) -> bool | None:
        """Whether namespaces came or went since the last scan; None where that costs a scan."""
        ...

    def forget(self) -> None:
        """Read everything anew next time, also what cannot change without an event."""
        ...


class StatmountScanner:
    """By nsfs ioctls, listmount and statmount. Unique mount ids make descriptions cacheable."""

    name = "statmount"

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Mount | None] = {}
        self._ids: dict[NamespaceKey, int] = {}

    def forget(self) -> None:
        """Drop the cache."""
        self._known.clear()

    def namespaces_changed(self) -> bool | None:
        """See MountScanner."""
        found = mounts.open_namespaces()
        for _, fd in found:
            os.close(fd)
        return {namespace_id for namespace_id, _ in found} != set(self._ids.values())

    def current(self, namespace: NamespaceKey, mount: Mount) -> Mount | None:
        """See MountScanner."""
        namespace_id = self._ids.get(namespace)
        if namespace_id is None:
            return None
        with suppress(OSError):
            return mounts.stat_mount(namespace_id, mount.mount_id)
        return None

    def scan(self, on_namespace: Callable[[NamespaceKey, int], None] | None = None) -> MountTable:
        """See MountScanner."""
        table: dict[NamespaceKey, list[Mount]] = {}
        alive: dict[tuple[int, int], Mount | None] = {}
        seen: dict[NamespaceKey, int] = {}
        namespaces = mounts.open_namespaces()
        try:
            for namespace_id, fd in namespaces:
                key = NamespaceKey(os.fstat(fd).st_ino)
                seen[key] = namespace_id
                if on_namespace is not None:
                    on_namespace(key, fd)
                try:
                    ids = mounts.list_mounts(namespace_id)
                except OSError:
                    continue  # it ended between the listing and the question
                found = table.setdefault(key, [])
                for mount_id in ids:
                    mount = self._describe(namespace_id, mount_id)
                    alive[namespace_id, mount_id] = mount
                    if mount is not None:
                        found.append(mount)
        finally:
            for _, fd in namespaces:
                os.close(fd)
        self._known = alive
        self._ids = seen
        return table

    def _describe(self, namespace_id: int, mount_id: int) -> Mount | None:
        known = self._known.get((namespace_id, mount_id), self)
        if known is None:
            return None  # none that is looked at; that never changes
        with suppress(OSError):
            if isinstance(known, Mount):
                return known
            mount = mounts.stat_mount(namespace_id, mount_id)
            return mount if _is_watched(mount) else None
        return None


class MountinfoScanner:
    """By /proc/PID/mountinfo of one process in each namespace."""

    name = "mountinfo"

    def __init__(self) -> None:
        self._pids: dict[NamespaceKey, int] = {}

    def namespaces_changed(self) -> bool | None:
        """See MountScanner."""
        return None

    def forget(self) -> None:
        """Nothing is cached."""

    def current(self, namespace: NamespaceKey, mount: Mount) -> Mount | None:
        """See MountScanner."""
        pid = self._pids.get(namespace)
        if pid is None or proc.mount_namespace_inode(pid) != namespace:
            return None
        with suppress(OSError, mountinfo.MountinfoError):
            for found in mountinfo.read(pid):
                if found.mount_id == mount.mount_id and found.devno == mount.devno:
                    return found
        return None

    def scan(self, on_namespace: Callable[[NamespaceKey, int], None] | None = None) -> MountTable:
        """See MountScanner."""
        table: dict[NamespaceKey, list[Mount]] = {}
        pids: dict[NamespaceKey, int] = {}
        for pid in proc.pids():
            inode = proc.mount_namespace_inode(pid)
            if inode is None or NamespaceKey(inode) in table:
                continue
            key = NamespaceKey(inode)
            with suppress(OSError, mountinfo.MountinfoError):
                if on_namespace is not None:
                    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        on_namespace(key, fd)
                    finally:
                        os.close(fd)
                found = mountinfo.read(pid)
                table[key] = [mount for mount in found if _is_watched(mount)]
                pids[key] = pid
        self._pids = pids
        return table


def _is_watched(mount: Mount) -> bool:
    return mount.fstype in SCANNED_FILESYSTEMS or is_remote(mount.fstype)


def best_scanner() -> MountScanner:
    """The better way that this kernel offers."""
    return StatmountScanner() if mounts.supported() else MountinfoScanner()


def open_namespace(key: NamespaceKey, pid: int | None) -> int:
    """A descriptor of the mount namespace; `pid` is a process that should be in it.

    The caller closes it soon. Raises FileNotFoundError when the namespace is gone.
    """
    candidates = ["self"] if pid is None else ["self", str(pid)]
    for candidate in candidates:
        with suppress(OSError):
            fd = os.open(f"/proc/{candidate}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(fd).st_ino == key:
                return fd
            os.close(fd)
    wanted = None
    with suppress(OSError):
        for _, fd in mounts.open_namespaces():
            if wanted is None and os.fstat(fd).st_ino == key:
                wanted = fd
            else:
                os.close(fd)
    if wanted is None:
        raise FileNotFoundError(2, "the mount namespace is gone", str(key))
    return wanted
