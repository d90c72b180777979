"""When to look again: mounts that come and go, VEs that start and end.

Mount events come from fanotify for every mount namespace that has been seen (Linux 6.14), and from
polling mountinfo of our own on older kernels. A namespace nobody has seen yet tells nothing, so
the cgroup directories, where a VE's cgroup appears before its first mount, are watched too, and
after any sign of change the next looks come quickly. A slow timer covers what nothing tells.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import time
from contextlib import suppress

from fswatchd.inventory.inventory import Changes, Inventory
from fswatchd.inventory.model import NamespaceKey
from fswatchd.kernel import fanotify, mounts
from fswatchd.kernel.patience import Patience

log = logging.getLogger(__name__)

# After a sign of change: a VE takes tens of milliseconds from its cgroup to its last mount.
_BURST_S = (0.0, 0.03, 0.1, 0.3, 1.0)
_IDLE_S = 4.0
_SCAN_EVERY_S = 30.0
# What is remembered of mounts is read anew, in case that nobody told of a change.
_FORGET_EVERY_S = 120.0
_FORGET_WITHOUT_EVENTS_S = 15.0
# Looks that nothing asks for come so seldom that they take a thousandth of the time.
_IDLE_SHARE = 0.001
# Below this a look costs nothing worth saving.
_CHEAP_S = 0.02
# A thousand VEs take some tenths of a second to look at. Looks may take this share of the time, and
# this much at once; then they wait.
_SHARE = 0.25
_AT_ONCE_S = 1.5
_MARK_S = 0.5


class InventoryWatch:
    """Drives `Inventory.refresh`. `on_changes` is called after every refresh that found any."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._wake = asyncio.Event()
        self._mounts: int | None = None
        self._directories: int | None = None
        self._mountinfo: int | None = None
        # Namespaces by their id, and those that were scanned since the last look ended.
        self._marked: set[int] = set()
        self._passed: set[int] = set()
        self._last = 0.0
        self._forgot = 0.0
        self._took = 0.0
        self._forgetting_took = 0.0
        self._debt = 0.0
        self._listeners: list[asyncio.Queue[Changes]] = []
        self.refreshes = 0
        self._problem = ""
        self._patience = Patience()

    def start(self) -> None:
        """Open the watches; what the kernel lacks is covered by the timer."""
        self._forgot = time.monotonic()
        with suppress(OSError):
            self._mounts = fanotify.init(fanotify.FAN_REPORT_MNT | fanotify.FAN_UNLIMITED_QUEUE)
            self._inventory.subscribe(on_namespace=self._mark_namespace)
            asyncio.get_running_loop().add_reader(self._mounts, self._mounts_changed, self._mounts)
        if self._mounts is None:
            self._watch_mountinfo()
        self._watch_directories()

    def stop(self) -> None:
        """Close the watches."""
        loop = asyncio.get_running_loop()
        for fd in (self._mounts, self._directories, self._mountinfo):
            if fd is not None:
                loop.remove_reader(fd)
                os.close(fd)
        self._mounts = self._directories = self._mountinfo = None

    def poke(self) -> None:
        """Something may have changed: look again soon, and some more times after that."""
        self._wake.set()

    def changes(self) -> asyncio.Queue[Changes]:
        """A queue that gets what every refresh changed."""
        queue: asyncio.Queue[Changes] = asyncio.Queue(64)
        self._listeners.append(queue)
        return queue

    async def run(self) -> None:
        """Refresh for ever."""
        burst: list[float] = []
        # The first look of the daemon was before anything was marked.
        self._wake.set()
        while True:
            timeout = burst.pop(0) if burst else _IDLE_S
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            if self._wake.is_set():
                self._wake.clear()
                burst = list(_BURST_S[1:])
                # Events come in swarms; one look a few milliseconds later sees them all.
                await asyncio.sleep(max(0.005, (self._debt_now() - _AT_ONCE_S) / _SHARE))
            elif burst and self._took > _CHEAP_S and not self._has_new_namespaces():
                continue  # known ones tell of their mounts; the last look of the burst sees it all
            elif timeout == _IDLE_S and not self._is_due():
                continue
            await self._refresh()

    def _is_due(self) -> bool:
        """Whether to look without any sign of change: a new namespace, something that a look did
        not get to, or much time has passed."""
        if self._inventory.is_behind():
            return True
        every = max(_SCAN_EVERY_S, self._took / _IDLE_SHARE)
        return time.monotonic() - self._last >= every or self._has_new_namespaces()

    def _has_new_namespaces(self) -> bool:
        """Whether mount namespaces came or went since the last look; also where nobody can say."""
        if self._mounts is None:
            return True
        try:
            return self._inventory.scanner.namespaces_changed() is not False
        except OSError:
            return True

    def _debt_now(self) -> float:
        """Seconds of looking that have not been waited for yet."""
        return max(self._debt - (time.monotonic() - self._last) * _SHARE, 0.0)

    async def _refresh(self) -> None:
        begin = time.monotonic()
        told = self._mounts is not None
        every = _FORGET_WITHOUT_EVENTS_S
        if told:
            every = max(_FORGET_EVERY_S, self._forgetting_took / _IDLE_SHARE)
        forget = begin - self._forgot >= every
        if forget:
            self._forgot = begin
        try:
            await self._mark_directories()
            changes = await self._inventory.refresh(forget=forget)
        except OSError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("cannot read the mounts of this node: %s", error)
            return
        except Exception as error:  # a task border: `on_refreshed` has told it, the next look comes
            if type(error).__name__ != self._problem:
                self._problem = type(error).__name__
                log.exception("cannot read the mounts of this node")
            return
        finally:
            debt = self._debt_now()
            self._last = time.monotonic()
            took = self._last - begin
            if forget:
                self._forgetting_took = took
            else:
                self._took = took
            self._debt = debt + took
        self._problem = ""
        self._forget_ended()
        self.refreshes += 1
        if changes.appeared or changes.vanished:
            for queue in self._listeners:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(changes)

    def _mark_namespace(self, key: NamespaceKey, fd: int) -> None:
        if self._mounts is None:
            return
        # Not by its inode: a VE that is started again often gets the one of its last namespace.
        try:
            namespace_id = mounts.namespace_id(fd)
        except OSError:
            namespace_id = key
        self._passed.add(namespace_id)
        if namespace_id in self._marked:
            return
        with suppress(OSError):
            fanotify.mark_mount_namespace(self._mounts, fd)
        # Also when it failed: a kernel that cannot is not asked for every namespace at every look.
        self._marked.add(namespace_id)

    def _forget_ended(self) -> None:
        """Those that no scan has passed since the last look are gone for good."""
        passed, self._passed = self._passed, set()
        self._marked &= passed

    def _watch_directories(self) -> None:
        try:
            self._directories = fanotify.init(fanotify.FAN_REPORT_DFID_NAME)
        except OSError:
            return
        asyncio.get_running_loop().add_reader(self._directories, self._drain, self._directories)

    async def _mark_directories(self) -> None:
        """At every look: a directory may have come, or come again, with a platform's first VE.

        Beside the event loop: it may lie on a server that does not answer.
        """
        group = self._directories
        if group is None:
            return
        paths = self._inventory.watch_directories()

        def mark() -> None:
            for path in paths:
                with suppress(OSError):
                    fanotify.mark_directory(group, path)

        with suppress(TimeoutError):
            await asyncio.to_thread(self._patience.ask, "directories", mark, _MARK_S)

    def _watch_mountinfo(self) -> None:
        # Only of our own namespace: an open mountinfo keeps a foreign one alive.
        with suppress(OSError):
            mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            poller = select.epoll()
            poller.register(mountinfo, select.EPOLLPRI | select.EPOLLERR)
            self._mountinfo = mountinfo

            def changed() -> None:
                poller.poll(0)
                self.poke()

            asyncio.get_running_loop().add_reader(poller.fileno(), changed)
            self._mountinfo_poller = poller

    def _mounts_changed(self, fd: int) -> None:
        moved: set[int] = set()
        with suppress(BlockingIOError, fanotify.FanotifyFormatError):
            for _ in range(64):
                found = fanotify.parse(os.read(fd, fanotify.READ_SIZE))
                moved.update(one.mount_id for one in found if one.mount_id is not None)
        self._inventory.scanner.moved(moved)
        self.poke()

    def _drain(self, fd: int) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):
                if not os.read(fd, fanotify.READ_SIZE):
                    break
        self.poke()
