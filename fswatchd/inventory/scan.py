"""Read who mounts what from the kernel: all mounts of all mount namespaces.

Two ways: namespace iteration with listmount and statmount (Linux 6.12), which also finds
namespaces that no process is in, and /proc/*/mountinfo, one process a namespace. Neither walks a
path, and no descriptor of a namespace is kept: it would keep the namespace's mounts alive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from fswatchd.events import printable
from fswatchd.inventory import reach
from fswatchd.inventory.model import (
    SCANNED_FILESYSTEMS,
    NamespaceKey,
    NamespaceMount,
)
from fswatchd.kernel import mountinfo, mounts, proc
from fswatchd.kernel.mounts import Mount
from fswatchd.kernel.remote import is_remote

_LINE_SHOWN = 200
_UNREAD_SHOWN = 3

MountTable = Mapping[NamespaceKey, Sequence[NamespaceMount]]


@dataclass(frozen=True, slots=True)
class _Namespace:
    """What is known of one: the ids of all its mounts, and those that are watched.

    The same objects as long as nothing changes, so that comparing a thousand VEs costs little.
    """

    ids: frozenset[int]
    places: Sequence[NamespaceMount]
    covered: frozenset[int]


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

    def at_once(self) -> AbstractContextManager[None]:
        """Within it, `current` may answer as of one moment, and nothing is read twice: for many
        questions right after one another, on one thread."""
        ...

    def namespaces_changed(self) -> bool | None:
        """Whether namespaces came or went since the last scan; None where that costs a scan."""
        ...

    def forget(self) -> None:
        """Read everything anew next time, also what cannot change without an event."""
        ...

    def moved(self, mount_ids: Iterable[int]) -> None:
        """Somebody has heard that these mounts came, went, or were moved."""
        ...

    def covered(self, namespace: NamespaceKey) -> frozenset[int]:
        """The mounts (`mount_id`) in it that its root covers, as of the last scan; see `reach`."""
        ...

    def unread(self) -> str:
        """What of the last scan is not understood: mounts may be missing. Empty for nothing."""
        ...


class StatmountScanner:
    """By nsfs ioctls, listmount and statmount.

    Unique mount ids make descriptions cacheable: a namespace is described anew where mounts have
    come or gone in it, or somebody has heard that one was moved.
    """

    name = "statmount"

    def __init__(self) -> None:
        self._known: dict[int, _Namespace] = {}
        self._ids: dict[NamespaceKey, int] = {}
        self._moved: set[int] = set()

    def forget(self) -> None:
        """Drop the cache."""
        self._known = {}

    def moved(self, mount_ids: Iterable[int]) -> None:
        """See MountScanner."""
        self._moved.update(mount_ids)

    def namespaces_changed(self) -> bool | None:
        """See MountScanner."""
        with closing(mounts.namespaces()) as found:
            return {namespace_id for namespace_id, _ in found} != set(self._ids.values())

    def current(self, namespace: NamespaceKey, mount: Mount) -> Mount | None:
        """See MountScanner."""
        namespace_id = self._ids.get(namespace)
        if namespace_id is None:
            return None
        with suppress(OSError):
            return mounts.stat_mount(namespace_id, mount.mount_id)
        return None

    def at_once(self) -> AbstractContextManager[None]:
        """See MountScanner; each mount is asked for by itself here."""
        return nullcontext()

    def covered(self, namespace: NamespaceKey) -> frozenset[int]:
        """See MountScanner."""
        known = self._known.get(self._ids.get(namespace, 0))
        return known.covered if known is not None else frozenset()

    def unread(self) -> str:
        """Nothing: there is no text."""
        return ""

    def scan(self, on_namespace: Callable[[NamespaceKey, int], None] | None = None) -> MountTable:
        """See MountScanner."""
        moved, self._moved = self._moved, set()
        try:
            return self._scan(moved, on_namespace)
        except BaseException:
            self._moved |= moved
            raise

    def _scan(
        self, moved: set[int], on_namespace: Callable[[NamespaceKey, int], None] | None
    ) -> MountTable:
        table: dict[NamespaceKey, Sequence[NamespaceMount]] = {}
        alive: dict[int, _Namespace] = {}
        seen: dict[NamespaceKey, int] = {}
        with closing(mounts.namespaces()) as namespaces:
            for namespace_id, fd in namespaces:
                key = NamespaceKey(os.fstat(fd).st_ino)
                seen[key] = namespace_id
                if on_namespace is not None:
                    on_namespace(key, fd)
                try:
                    ids = mounts.list_mounts(namespace_id)
                except OSError as error:
                    if mounts.is_shortage(error):
                        raise
                    continue  # it ended between the listing and the question
                known = self._known.get(namespace_id)
                if (
                    known is None
                    or len(known.ids) != len(ids)
                    or not known.ids.issuperset(ids)
                    or not moved.isdisjoint(known.ids)
                ):
                    known = _described(key, namespace_id, ids)
                alive[namespace_id] = known
                table[key] = known.places
        self._known = alive
        self._ids = seen
        return table


def _described(key: NamespaceKey, namespace_id: int, ids: Iterable[int]) -> _Namespace:
    found: dict[int, Mount] = {}
    for mount_id in ids:
        with suppress(OSError):
            found[mount_id] = mounts.stat_mount(namespace_id, mount_id)
    places = [
        NamespaceMount(namespace=key, mount=_with_parent(mount, found))
        for mount in found.values()
        if _is_watched(mount)
    ]
    return _Namespace(frozenset(found), places, reach.covered(found))


def _with_parent(mount: Mount, found: Mapping[int, Mount]) -> Mount:
    parent = found.get(mount.parent_id)
    if parent is None or not (parent.peer_group or parent.master):
        return mount
    return replace(mount, parent_peers=(parent.peer_group, parent.master))


class MountinfoScanner:
    """By /proc/PID/mountinfo of one process in each namespace."""

    name = "mountinfo"

    def __init__(self) -> None:
        self._pids: dict[NamespaceKey, int] = {}
        self._unread: list[str] = []
        self._at_once: dict[NamespaceKey, dict[int, Mount]] | None = None

    def namespaces_changed(self) -> bool | None:
        """See MountScanner."""
        return None

    def forget(self) -> None:
        """Nothing is cached."""

    def moved(self, mount_ids: Iterable[int]) -> None:
        """Nothing is cached."""

    def covered(self, namespace: NamespaceKey) -> frozenset[int]:
        """None: mountinfo does not show mounts that its process cannot reach."""
        return frozenset()

    def unread(self) -> str:
        """See MountScanner."""
        return "; ".join(self._unread[:_UNREAD_SHOWN])

    def current(self, namespace: NamespaceKey, mount: Mount) -> Mount | None:
        """See MountScanner."""
        pid = self._pids.get(namespace)
        if pid is None or proc.mount_namespace_inode(pid) != namespace:
            return None
        with suppress(OSError):
            found = self._mounts_in(namespace, pid).get(mount.mount_id)
            if found is not None and found.devno == mount.devno:
                return found
        return None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """See MountScanner. Else a look at a thousand filesystems would read a thousand tables."""
        self._at_once = {}
        try:
            yield
        finally:
            self._at_once = None

    def _mounts_in(self, namespace: NamespaceKey, pid: int) -> dict[int, Mount]:
        if self._at_once is not None and namespace in self._at_once:
            return self._at_once[namespace]
        read = {mount.mount_id: mount for mount in mountinfo.read(pid)}
        if self._at_once is not None:
            self._at_once[namespace] = read
        return read

    def scan(self, on_namespace: Callable[[NamespaceKey, int], None] | None = None) -> MountTable:
        """See MountScanner."""
        table: dict[NamespaceKey, Sequence[NamespaceMount]] = {}
        pids: dict[NamespaceKey, int] = {}
        unread: list[str] = []
        for pid in proc.pids():
            inode = proc.mount_namespace_inode(pid)
            if inode is None or NamespaceKey(inode) in table:
                continue
            key = NamespaceKey(inode)
            try:
                lines: list[str] = []
                table[key] = self._read(pid, key, on_namespace, lines)
            except OSError as error:
                if mounts.is_shortage(error):
                    raise
                continue  # the process has ended
            pids[key] = pid
            if lines:
                text = f"process {pid} has mounts that are not understood, such as"
                unread.append(f"{text} {printable(lines[0], _LINE_SHOWN)}")
        self._pids, self._unread = pids, unread
        return table

    def _read(
        self,
        pid: int,
        key: NamespaceKey,
        on_namespace: Callable[[NamespaceKey, int], None] | None,
        unread: list[str],
    ) -> list[NamespaceMount]:
        if on_namespace is not None:
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                on_namespace(key, fd)
            finally:
                os.close(fd)
        found = {mount.mount_id: mount for mount in mountinfo.read(pid, unread)}
        return [
            NamespaceMount(namespace=key, mount=_with_parent(mount, found))
            for mount in found.values()
            if _is_watched(mount)
        ]


def _is_watched(mount: Mount) -> bool:
    return mount.fstype in SCANNED_FILESYSTEMS or is_remote(mount.fstype)


def best_scanner() -> MountScanner:
    """The better way that this kernel offers."""
    return StatmountScanner() if mounts.supported() else MountinfoScanner()


def namespace_of_process(key: NamespaceKey, pid: int | None) -> int | None:
    """The same where the process, or our own, is in it; None where not. It costs almost nothing."""
    candidates = ["self"] if pid is None else ["self", str(pid)]
    for candidate in candidates:
        with suppress(OSError):
            fd = os.open(f"/proc/{candidate}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(fd).st_ino == key:
                return fd
            os.close(fd)
    return None


def open_namespace(key: NamespaceKey, pid: int | None) -> int:
    """A descriptor of the mount namespace; `pid` is a process that should be in it.

    The caller closes it soon. Raises FileNotFoundError when the namespace is gone.
    """
    found = namespace_of_process(key, pid)
    if found is not None:
        return found
    try:
        with closing(mounts.namespaces()) as namespaces:
            for _, fd in namespaces:
                if os.fstat(fd).st_ino == key:
                    return os.dup(fd)
    except OSError as error:
        if mounts.is_shortage(error):
            raise
    raise FileNotFoundError(2, "the mount namespace is gone", str(key))
