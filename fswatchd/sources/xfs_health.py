"""What XFS itself says of its health (Linux 7.0): one monitor a filesystem.

There is one monitor a filesystem for all of the node. Where xfs_healer(8) has it or is going to, it
is left to that: a healer that repairs while the filesystem is in use is worth more than one witness
more. Its journal is read then (`journal` hands its lines on), and the kernel log tells of the same
errors.

A monitor does not keep the filesystem mounted, and ends with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from dataclasses import dataclass

from fswatchd.devno import Devno
from fswatchd.events import EventClass, SourceState
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import mountinfo, proc, xfs_health
from fswatchd.kernel.mounts import Mount
from fswatchd.kernel.xfs_health import Type, XfsHealthEvent
from fswatchd.sources import Sink, Source
from fswatchd.sources.xfs_healer import HealerLine, is_started_for_all

log = logging.getLogger(__name__)

_KNOWN_S = 5.0

_MEANING = {
    Type.SICK: (EventClass.CORRUPTION, errno.EUCLEAN, "damaged metadata was met"),
    Type.CORRUPT: (EventClass.CORRUPTION, errno.EUCLEAN, "a check has found damaged metadata"),
    Type.HEALTHY: (EventClass.RECOVERED, None, "metadata is well again"),
    Type.SHUTDOWN: (EventClass.SHUTDOWN, errno.ESHUTDOWN, "it has shut down"),
    Type.MEDIA_ERROR: (EventClass.IO_ERROR, errno.EIO, "media error"),
    Type.BUFREAD: (EventClass.IO_ERROR, errno.EIO, "a read has failed"),
    Type.BUFWRITE: (EventClass.IO_ERROR, errno.EIO, "a write-back has failed"),
    Type.DIOREAD: (EventClass.IO_ERROR, errno.EIO, "a direct read has failed"),
    Type.DIOWRITE: (EventClass.IO_ERROR, errno.EIO, "a direct write has failed"),
    Type.DATALOST: (EventClass.DATA_LOSS, errno.EIO, "data of a file is lost"),
}


@dataclass(slots=True)
class _Monitor:
    superblock: Superblock
    fd: int
    last_read_ns: int


@dataclass(frozen=True, slots=True)
class _Held:
    """An XFS that is not monitored by us, and why."""

    superblock: Superblock
    reason: str


class XfsHealthSource(Source):
    """The monitors of every XFS that it is given and nobody else monitors."""

    name = "xfs_health"

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._running = False
        self._monitors: dict[tuple[int, int], _Monitor] = {}
        self._held: dict[tuple[int, int], _Held] = {}
        self._asked, self._healed = -_KNOWN_S, False

    async def start(self) -> None:
        """See Source. Whether the kernel has it shows with the first XFS."""
        self._running = True
        self._available("no XFS was seen yet")

    async def stop(self) -> None:
        """See Source."""
        for monitor in list(self._monitors.values()):
            self._close(monitor)
        self._held.clear()
        self._running = False
        self.status.state = SourceState.OFF

    def watch(self, superblock: Superblock, fd: int) -> None:
        """Listen to an XFS from now on; `fd` is a mount of it, best one of its root."""
        if not self._running or superblock.fstype != "xfs":
            return
        self.forget(superblock)
        if self._is_healed(superblock):
            reason = f"{superblock.device} is left to xfs_healer, whose journal is read"
            self._held[superblock.devno] = _Held(superblock, reason)
            self._describe()
            return
        try:
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                monitor = xfs_health.monitor(root)
            finally:
                os.close(root)
        except OSError as error:
            self._refused(superblock, error)
            return
        self.attach(superblock, monitor)

    def attach(self, superblock: Superblock, monitor_fd: int) -> None:
        """Read the events of a superblock from this descriptor, and close it in the end."""
        monitor = _Monitor(superblock, monitor_fd, time.time_ns())
        self._monitors[superblock.devno] = monitor
        asyncio.get_running_loop().add_reader(monitor_fd, self._readable, monitor)
        self._describe()

    def forget(self, superblock: Superblock) -> None:
        """The superblock is gone."""
        self._held.pop(superblock.devno, None)
        monitor = self._monitors.get(superblock.devno)
        if monitor is not None:
            self._close(monitor)

    def healer_says(self, line: HealerLine) -> None:
        """A line of xfs_healer, which works in the node's own mount namespace."""
        mounted = _mounted_at(line.mountpoint)
        if line.refused:
            for monitor in list(self._monitors.values()):
                if monitor.superblock.devno in mounted:
                    self._step_aside(monitor)
            return
        for held in self._held.values():
            superblock = held.superblock
            if superblock.devno not in (mounted or _seen_at(superblock, line.mountpoint)):
                continue
            if line.klass is EventClass.LOST:
                self._report_loss(f"{superblock.device}: {line.detail}", line.lost or None)
                continue
            self._emit(
                line.klass,
                line.detail,
                confirms=False,
                device=superblock.device,
                devno=superblock.devno,
                fstype=superblock.fstype,
            )

    def _is_healed(self, superblock: Superblock) -> bool:
        """Whether it gets a healer: one that comes second cannot have the monitor, and ends."""
        now = time.monotonic()
        if now - self._asked >= _KNOWN_S:
            self._asked, self._healed = now, is_started_for_all()
        return self._healed and any(one.devno == superblock.devno for one in _whole_mounts())

    def _step_aside(self, monitor: _Monitor) -> None:
        superblock = monitor.superblock
        self._close(monitor)
        reason = f"{superblock.device} is left to xfs_healer: it found us there, start it again"
        log.warning("%s", reason)
        self._held[superblock.devno] = _Held(superblock, reason)
        self._describe()

    def _close(self, monitor: _Monitor) -> None:
        asyncio.get_running_loop().remove_reader(monitor.fd)
        os.close(monitor.fd)
        if self._monitors.get(monitor.superblock.devno) is monitor:
            del self._monitors[monitor.superblock.devno]
        self._describe()

    def _refused(self, superblock: Superblock, error: OSError) -> None:
        if error.errno == errno.ENOTTY:
            self._unavailable("this kernel has no XFS health monitor (Linux 7.0)")
            return
        if error.errno == errno.EEXIST:
            reason = f"{superblock.device} is held by xfs_healer, whose journal is read, or another"
        elif error.errno == errno.EPERM:
            reason = f"{superblock.device}: needs CAP_SYS_ADMIN and a mount of its root"
        else:
            reason = f"{superblock.device}: {error.strerror}"
        self._held[superblock.devno] = _Held(superblock, reason)
        self._describe()

    def _describe(self) -> None:
        if self.status.state is SourceState.UNAVAILABLE:
            return
        parts = [
            f"{len(self._monitors)} filesystems",
            *sorted(held.reason for held in self._held.values()),
        ]
        self._available("; ".join(parts))

    def _readable(self, monitor: _Monitor) -> None:
        try:
            data = os.read(monitor.fd, xfs_health.READ_SIZE)
            events = xfs_health.parse(data)
        except BlockingIOError:
            return
        except xfs_health.XfsHealthFormatError as error:
            self._lost(monitor, f"{error}", None)
            return
        except OSError as error:
            self._lost(monitor, f"cannot read events: {error.strerror}", None)
            self._close(monitor)
            return
        if not data:
            self._close(monitor)
            return
        for event in events:
            self._handle(monitor, event)
        monitor.last_read_ns = time.time_ns()

    def _handle(self, monitor: _Monitor, event: XfsHealthEvent) -> None:
        if event.type == Type.LOST:
            self._lost(monitor, "the kernel's queue overflowed", event.lost or None)
        elif event.type == Type.UNMOUNT:
            if monitor.superblock.devno in self._monitors:
                self._close(monitor)
        elif event.type in _MEANING:
            klass, number, text = _MEANING[Type(event.type)]
            superblock = monitor.superblock
            self._emit(
                klass,
                f"{text}: {event.details}" if event.details else text,
                confirms=True,
                device=superblock.device,
                devno=superblock.devno,
                fstype=superblock.fstype,
                errno=event.error or number,
            )

    def _lost(self, monitor: _Monitor, reason: str, count: int | None) -> None:
        where = f"{monitor.superblock.device}: {reason}"
        self._report_loss(where, count, monitor.last_read_ns)


def _mounted_at(point: str) -> set[Devno]:
    """What xfs_healer means by a mount point. Several may lie over one another there.

    The kernel is asked: what was known of a filesystem when it was seen first may be its mount in
    another namespace alone.
    """
    return {mount.devno for mount in _whole_mounts() if mount.point == point}


def _seen_at(superblock: Superblock, point: str) -> set[Devno]:
    """The same by what was known of it, for what is unmounted by now."""
    node = proc.mount_namespace_inode("self")
    points = {
        place.mount.point
        for place in superblock.mounts
        if place.namespace == node and place.mount.root == "/"
    }
    return {superblock.devno} if point in points else set()


def _whole_mounts() -> list[Mount]:
    """The node's mounts of whole filesystems, for each of which xfs_healer can be started."""
    try:
        return [mount for mount in mountinfo.read("self") if mount.root == "/"]
    except OSError:
        return []
