"""Uevents of block devices and filesystems, from the kernel itself, through pyudev.

The kernel's own group, not udevd's: udevd may hang on the very device that is sick, and topology
comes from our own inventory anyway. libudev believes only what comes from the kernel (no sender
but netlink port 0, credentials of root). Only what the event carries is used; sysfs is asked for
nothing but which devices rest on which.

`pyudev.Monitor.poll` raises when the socket has overflowed and never clears the error, so that
every later call raises too (pyudev issue 194). The error is read, and so cleared, first.

Not here: what an event means, see `uevent_meaning`.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pyudev

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Severity, SourceState
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block
from fswatchd.sources import Sink, Source, batch
from fswatchd.sources.uevent_meaning import (
    SUBSYSTEMS,
    Meaning,
    Reach,
    Uevent,
    changes_topology,
    meaning,
)

Mounted = Callable[[Devno], Superblock | None]

# include/uapi/asm-generic/socket.h; libudev asks for as much since systemd 246.
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 128 << 20
# A namespace, or one path to it where nvme-core does multipath: nvme0c1n1 leads to nvme0n1.
_NVME_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")


class UeventSource(Source):
    """Devices and filesystems that come, go, fail or change.

    `check` is told of every filesystem whose state may tell more than the event.
    """

    name = "uevent"

    def __init__(
        self,
        sink: Sink,
        mounted: Mounted,
        on_topology: Callable[[], None],
        check: Callable[[Devno], None] = lambda _: None,
        sysfs: Path = block.SYSFS,
    ) -> None:
        super().__init__(sink)
        self._mounted = mounted
        self._on_topology = on_topology
        self._check = check
        self._sysfs = sysfs
        self._monitor: pyudev.Monitor | None = None
        self._socket: socket.socket | None = None
        self._canary: str | None = None
        self._sizes: dict[Devno, int] = {}
        self._last_read_ns = time.time_ns()

    def expect_canary(self, token: str) -> None:
        """See Source."""
        self._canary = token

    async def start(self) -> None:
        """See Source."""
        try:
            self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            self._monitor.start()
        except (OSError, ImportError) as error:
            self._unavailable(f"no uevents: {error}")
            return
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        _enlarge_buffer(self._socket)
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._available()

    async def stop(self) -> None:
        """See Source."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = self._monitor = None
        self.status.state = SourceState.OFF

    def watch(self, superblock: Superblock) -> None:
        """Remember how large its device is, to know when it shrinks."""
        size = block.sectors(superblock.devno, self._sysfs)
        if size is not None:
            self._sizes[superblock.devno] = size

    def forget(self, superblock: Superblock) -> None:
        """The superblock is gone."""
        self._sizes.pop(superblock.devno, None)

    def _readable(self) -> None:
        if self._socket is None or self._monitor is None:
            return
        overflow = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if overflow:
            self._report_loss(
                f"the socket overflowed ({os.strerror(overflow)})", None, self._last_read_ns
            )
        try:
            for _ in batch():
                device = self._monitor.poll(0)
                if device is None:
                    break
                self._receive(device)
        except (OSError, UnicodeError) as error:
            self._report_loss(f"cannot read: {error}", None, self._last_read_ns)
        self._last_read_ns = time.time_ns()

    def _receive(self, device: pyudev.Device) -> None:
        if device.subsystem not in SUBSYSTEMS:
            return
        self.handle(
            Uevent(
                action=device.action or "",
                subsystem=device.subsystem,
                path=device.device_path,
                properties=dict(device.properties),
            )
        )

    def handle(self, event: Uevent) -> None:
        """One event."""
        if self._canary is not None and event.properties.get("SYNTH_UUID") == self._canary:
            self._sink.canary(self.name, self._canary)
            return
        if changes_topology(event):
            self._on_topology()
        if event.properties.get("RESIZE") == "1":
            self._resized(event)
        found = meaning(event)
        if found is None:
            return
        superblocks = self._reached(event, found.reach)
        if any(_is_of_another(event, superblock) for superblock in superblocks):
            self._report_loss(f"an event of a filesystem that had the device {event.name} before")
            return
        if found.reach is Reach.NAMED and not superblocks and found.klass.is_problem:
            # Mounted a moment ago, perhaps. Until its UUID is compared it is only a name.
            self._emit(
                found.klass,
                found.text,
                confirms=False,
                device=event.properties["FS_NAME"],
                fstype=event.properties.get("FS_TYPE"),
            )
        for superblock in superblocks:
            if found.klass is EventClass.NONE or _is_expected(found, superblock):
                self._check(superblock.devno)
                continue
            self._emit_of(superblock, _for_one_of_several(found, superblock))

    def _emit_of(self, superblock: Superblock, found: Meaning) -> None:
        self._emit(
            found.klass,
            found.text,
            confirms=found.confirms,
            severity=found.severity,
            device=superblock.device,
            devno=superblock.devno,
            fstype=superblock.fstype,
        )

    def _resized(self, event: Uevent) -> None:
        """A device that shrinks below its filesystem fails every access to what is gone.

        btrfs can have been made smaller first, so this is a suspicion, which its state refutes.
        """
        devno = _devno(event)
        superblock = self._mounted(devno) if devno else None
        if devno is None or superblock is None:
            return
        before = self._sizes.get(devno)
        now = block.sectors(devno, self._sysfs)
        if now is not None:
            self._sizes[devno] = now
        if before is None or now is None or now >= before:
            return
        text = f"{event.name} has shrunk from {before} to {now} sectors while it is mounted"
        self._emit_of(
            superblock,
            Meaning(
                reach=Reach.DISK,
                klass=EventClass.IO_ERROR,
                text=text,
                severity=Severity.WARNING,
                confirms=False,
            ),
        )

    def _reached(self, event: Uevent, reach: Reach) -> list[Superblock]:
        """The mounted filesystems that an event is about."""
        own = _devno(event)
        directory = self._sysfs / event.path.lstrip("/")
        match reach:
            case Reach.DISK if own is not None:
                devnos = [own, *self._numbers(block.partitions(own, self._sysfs))]
            case Reach.ABOVE if own is not None:
                devnos = [own, *self._numbers(block.above(own, self._sysfs))]
            case Reach.SCSI:
                devnos = self._numbers_above(place.name for place in directory.glob("block/*"))
            case Reach.NVME:
                names = (_NVME_NAMESPACE.fullmatch(place.name) for place in directory.glob("nvme*"))
                devnos = self._numbers_above(name[1] + name[2] for name in names if name)
            case Reach.NAMED:
                devnos = self._numbers([event.properties["FS_NAME"]])
            case Reach.GFS2:
                devnos = []
                with suppress(OSError, ValueError):
                    # fs/gfs2/sys.c, `id_show`: the superblock's device number
                    devnos = [Devno.parse((directory / "id").read_text(encoding="ascii"))]
            case _:
                devnos = []
        found = (self._mounted(devno) for devno in dict.fromkeys(devnos))
        return list({s.devno: s for s in found if s is not None}.values())

    def _numbers(self, names: Iterable[str]) -> list[Devno]:
        numbers = (block.devno_of(name, self._sysfs) for name in sorted(names))
        return [number for number in numbers if number is not None]

    def _numbers_above(self, disks: Iterable[str]) -> list[Devno]:
        return [
            number
            for disk in self._numbers(disks)
            for number in self._numbers(block.above(disk, self._sysfs))
        ]


def _devno(event: Uevent) -> Devno | None:
    with suppress(KeyError, ValueError):
        return Devno(int(event.properties["MAJOR"]), int(event.properties["MINOR"]))
    return None


def _is_of_another(event: Uevent, superblock: Superblock) -> bool:
    """Whether the event carries the UUID of another filesystem: device names are used again."""
    uuid = event.properties.get("UUID", "").lower()
    return bool(uuid and superblock.uuid and uuid != superblock.uuid)


def _is_expected(found: Meaning, superblock: Superblock) -> bool:
    """A disk that becomes read-only is no fault beneath a filesystem that does not write."""
    return (
        found.klass is EventClass.READONLY
        and found.reach is Reach.DISK
        and "ro" in superblock.options
    )


def _for_one_of_several(found: Meaning, superblock: Superblock) -> Meaning:
    """A device that goes is not the whole filesystem where there are others."""
    if found.klass is not EventClass.DEVICE_LOST or len(superblock.members) < 2:
        return found
    return Meaning(reach=found.reach, klass=EventClass.DEGRADED, text=found.text)


def _enlarge_buffer(sock: socket.socket) -> None:
    """Make overflows rare; they are reported all the same."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= _BUFFER_BYTES:
        return
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            return
