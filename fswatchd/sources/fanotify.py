"""Filesystem errors by fanotify (FAN_FS_ERROR, Linux 5.16; which filesystems report is up to them).

The kernel names a filesystem by `f_fsid`. Copies of one image share it, and one group merges
their events, so no group watches two filesystems with the same fsid: as many groups are opened as
there are copies of the commonest image. Past `GROUP_LIMIT` groups the rest share, and an event
that could be from several of them is a `Lost`: the state of all is read, and counters tell.

Not here: what the error means for the VE. What fanotify does not tell at all on kernels before
7.0 (group errors, shutdown, data) is for the other sources.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fswatchd.devno import Devno
from fswatchd.events import EventClass, SourceState
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import fanotify
from fswatchd.sources import Sink, Source

# max_user_groups is 128 for everything that runs as root, and we are not alone.
GROUP_LIMIT = 64

_EFSCORRUPTED = errno.EUCLEAN
_EFSBADCRC = errno.EBADMSG
_FILEID_INO32_GEN = 1
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EXDEV, errno.ENODEV, errno.EINVAL}

Options = Callable[[Devno], tuple[str, ...]]


@dataclass(slots=True)
class _Group:
    fd: int
    watched: dict[bytes, set[Devno]] = field(default_factory=dict)


class FanotifySource(Source):
    """FAN_FS_ERROR of every superblock it is given."""

    name = "fanotify"

    def __init__(self, sink: Sink, options: Options) -> None:
        super().__init__(sink)
        self._options = options
        self._groups: list[_Group] = []
        self._names: dict[Devno, tuple[str, str]] = {}
        self._canary: tuple[Superblock, int] | None = None
        self._silent: set[int] = set()
        self._last_read_ns = time.time_ns()

    async def start(self) -> None:
        """See Source."""
        try:
            self._open_group()
        except OSError as error:
            self._unavailable(_why_not(error))
        else:
            self._available()

    async def stop(self) -> None:
        """See Source."""
        for group in self._groups:
            asyncio.get_running_loop().remove_reader(group.fd)
            with suppress(OSError):
                os.close(group.fd)
        self._groups.clear()
        self._names.clear()
        self.status.state = SourceState.OFF

    def watch(self, superblock: Superblock, fd: int) -> None:
        """Listen to a superblock from now on; `fd` is a directory on it."""
        if not self._groups or superblock.fsid is None:
            return
        group = self._group_for(superblock.fsid, superblock.devno)
        try:
            fanotify.mark_superblock(group.fd, fd)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self.status.detail = f"cannot watch {superblock.device}: {error.strerror}"
            return
        group.watched.setdefault(superblock.fsid, set()).add(superblock.devno)
        self._names[superblock.devno] = (superblock.device, superblock.fstype)
        watched = sum(len(devnos) for group in self._groups for devnos in group.watched.values())
        self.status.detail = f"{watched} filesystems, {len(self._groups)} groups"

    def forget(self, superblock: Superblock) -> None:
        """The superblock is gone, and its mark with it."""
        self._names.pop(superblock.devno, None)
        if self._canary is not None and self._canary[0].devno == superblock.devno:
            self._canary = None
        for group in self._groups:
            for fsid in [f for f, devnos in group.watched.items() if superblock.devno in devnos]:
                group.watched[fsid].discard(superblock.devno)
                if not group.watched[fsid]:
                    del group.watched[fsid]

    def unmarked(self) -> set[Devno]:
        """Superblocks that should be watched and are not: unmounted and mounted between looks."""
        missing = set()
        for group in self._groups:
            marked = fanotify.marked_devices(group.fd)
            for devnos in group.watched.values():
                missing |= {d for d in devnos if (d.major << 20 | d.minor) not in marked}
        return missing

    def watch_canary(self, superblock: Superblock, fd: int) -> None:
        """Listen to the canary's superblock in every group, also in those opened later.

        `fd` stays the caller's, and open as long as the canary is in use.
        """
        self._canary = (superblock, fd)
        self._names[superblock.devno] = (superblock.device, superblock.fstype)
        for group in self._groups:
            self._mark_canary(group)

    def expect_canary(self, token: str) -> None:
        """See Source: every group has to hear it."""
        self._silent = {group.fd for group in self._groups}

    def _mark_canary(self, group: _Group) -> None:
        if self._canary is None:
            return
        # A group that cannot be marked stays silent, and the canary tells.
        with suppress(OSError):
            fanotify.mark_superblock(group.fd, self._canary[1])

    def _group_for(self, fsid: bytes, devno: Devno) -> _Group:
        for group in self._groups:
            if group.watched.get(fsid, {devno}) == {devno}:
                return group
        if len(self._groups) < GROUP_LIMIT:
            try:
                return self._open_group()
            except OSError:
                pass  # EMFILE: others use groups too
        return self._groups[0]

    def _open_group(self) -> _Group:
        group = _Group(fanotify.init_errors())
        self._groups.append(group)
        self._mark_canary(group)
        asyncio.get_running_loop().add_reader(group.fd, self._readable, group)
        return group

    def _readable(self, group: _Group) -> None:
        try:
            events = fanotify.parse(os.read(group.fd, fanotify.READ_SIZE))
        except BlockingIOError:
            return
        except fanotify.FanotifyFormatError as error:
            self._report_loss(str(error), since_ns=self._last_read_ns)
            return
        except OSError as error:
            asyncio.get_running_loop().remove_reader(group.fd)
            self._fail(f"cannot read events: {error.strerror}", self._last_read_ns)
            return
        for event in events:
            self._handle(group, event)
        self._last_read_ns = time.time_ns()

    def _handle(self, group: _Group, event: fanotify.FanotifyEvent) -> None:
        if event.overflow:
            self._report_loss("the kernel's queue overflowed", since_ns=self._last_read_ns)
            return
        if not event.mask & fanotify.FAN_FS_ERROR or event.fsid is None:
            return
        if self._canary is not None and event.fsid == self._canary[0].fsid:
            self._heard_canary(group, self._canary[0])
            return
        devnos = group.watched.get(event.fsid, set())
        if len(devnos) != 1:
            names = ", ".join(sorted(self._names[d][0] for d in devnos if d in self._names))
            self._report_loss(f"an error on one of: {names or 'a filesystem gone by now'}")
            return
        (devno,) = devnos
        device, fstype = self._names[devno]
        klass = classify(
            event.error,
            of_a_file=event.handle is not None,
            options=lambda: self._options(devno),
        )
        self._emit(
            klass,
            _describe(event),
            confirms=True,
            device=device,
            devno=devno,
            fstype=fstype,
            errno=event.error or None,
            count=max(event.count, 1),
        )

    def _heard_canary(self, group: _Group, canary: Superblock) -> None:
        self._silent.discard(group.fd)
        if not self._silent:
            # The way of all events from here on, up to where canaries are taken out.
            self._emit(EventClass.CORRUPTION, "canary", confirms=True, devno=canary.devno)


def classify(error: int, *, of_a_file: bool, options: Callable[[], tuple[str, ...]]) -> EventClass:
    """The class of an error from its errno.

    ESHUTDOWN, and EIO of the filesystem as a whole, are how ext4 reports a journal that was
    aborted, and on newer kernels a shutdown too, which the superblock's options show. A device that
    fails is told by the block layer's lines and by the error code in sysfs; asking here whether
    the options already show the abort would depend on who is faster.
    """
    if error in {_EFSCORRUPTED, _EFSBADCRC}:
        return EventClass.CORRUPTION
    if error == errno.ENOSPC:
        return EventClass.SPACE
    if error == errno.ESHUTDOWN or (error == errno.EIO and not of_a_file):
        return EventClass.SHUTDOWN if "shutdown" in options() else EventClass.READONLY
    if error == errno.EROFS:
        return EventClass.READONLY
    return EventClass.IO_ERROR if error == errno.EIO else EventClass.CORRUPTION


def _describe(event: fanotify.FanotifyEvent) -> str:
    name = errno.errorcode.get(event.error, str(event.error))
    where = "the filesystem"
    if event.handle is not None:
        kind, handle = event.handle
        where = "a file"
        if kind == _FILEID_INO32_GEN and len(handle) == 8:
            inode, generation = struct.unpack("=II", handle)
            where = f"inode {inode} (generation {generation})"
    times = f", {event.count} times" if event.count > 1 else ""
    return f"{name} in {where}{times}"


def _why_not(error: OSError) -> str:
    return {
        errno.EPERM: "needs CAP_SYS_ADMIN",
        errno.ENOSYS: "this kernel has no fanotify",
        errno.EINVAL: "this kernel has no FAN_REPORT_FID (Linux 5.1)",
        errno.EMFILE: "all fanotify groups are taken; raise fs.fanotify.max_user_groups",
    }.get(error.errno or 0, error.strerror or str(error))
