"""What no event tells: counters, flags and options, read when something hints and by timer.

Which questions a filesystem is asked is for the probes; here it is decided when they look, and
what they find becomes events. A file of sysfs that can be polled wakes; for all that cannot, there
is the timer.

What went wrong while nobody listened is found the same way: the first look at a filesystem is
compared with what was remembered of its volume.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Health, SourceState
from fswatchd.inventory.model import BlockDevice, Superblock
from fswatchd.inventory.view import describe
from fswatchd.kernel import block
from fswatchd.sources import Sink, Source
from fswatchd.sources.probes import Finding, Memory, Mounts, Probe, Seen, worst_health
from fswatchd.sources.probes.btrfs import BtrfsProbe
from fswatchd.sources.probes.ext4 import Ext4Probe
from fswatchd.sources.probes.f2fs import F2fsProbe
from fswatchd.sources.probes.loop import LoopProbe
from fswatchd.sources.probes.md import MdProbe
from fswatchd.sources.probes.options import OptionsProbe
from fswatchd.sources.probes.xfs import XfsProbe

log = logging.getLogger(__name__)

# An error of which nothing else tells is known within a second.
_OFTEN_S = 0.9
_ALL_EVERY_S = 15.0
# With many filesystems the turns come less often: a hint is followed at once all the same.
_EACH_S = 0.003
_ROUND = 10
# What looking at everything may hold up the loop for at a time.
_AT_ONCE_S = 0.02
_HINT_S = 0.02
# The kernel may write the line before it does what it says (ext4_force_shutdown).
_HINT_AGAIN_S = 0.5


@dataclass(slots=True)
class _Watched:
    superblock: Superblock
    probes: list[Probe]


class StateSource(Source):
    """The probes of every superblock it is given."""

    name = "state"

    def __init__(self, sink: Sink, mounts: Mounts, memory: Memory) -> None:
        super().__init__(sink)
        self._mounts = mounts
        self._memory = _AfterReport(memory)
        self._watched: dict[Devno, _Watched] = {}
        self._poller: select.epoll | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._hinted: set[Devno] = set()
        self._hinted_before: set[Devno] = set()
        self._to_ask: asyncio.Queue[Devno] = asyncio.Queue()
        self._asking: set[Devno] = set()
        self._woken_by: dict[int, Devno] = {}

    async def start(self) -> None:
        """See Source."""
        self._poller = select.epoll()
        asyncio.get_running_loop().add_reader(self._poller.fileno(), self._woken)
        self._tasks = [
            asyncio.create_task(self._look_regularly()),
            asyncio.create_task(self._ask_in_turn()),
        ]
        self._available()

    async def stop(self) -> None:
        """See Source."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        for watched in list(self._watched.values()):
            self.forget(watched.superblock)
        if self._poller is not None:
            asyncio.get_running_loop().remove_reader(self._poller.fileno())
            self._poller.close()
            self._poller = None
        self.status.state = SourceState.OFF

    def watch(self, superblock: Superblock) -> None:
        """Look at a superblock from now on; its past is reported if nobody knew it."""
        self.forget(superblock)
        if self._poller is None:
            return
        watched = _Watched(superblock, self._probes_of(superblock))
        self._watched[superblock.devno] = watched
        for probe in watched.probes:
            for fd in probe.wakes:
                # By edge: what has woken us is read a moment later, and must not wake until then.
                self._woken_by[fd] = superblock.devno
                with suppress(OSError):
                    self._poller.register(fd, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)
        self.check(superblock.devno)
        self.status.detail = f"{len(self._watched)} filesystems"

    def forget(self, superblock: Superblock) -> None:
        """The superblock is gone."""
        watched = self._watched.pop(superblock.devno, None)
        if watched is None:
            return
        for probe in watched.probes:
            for fd in probe.wakes:
                self._woken_by.pop(fd, None)
                if self._poller is not None:
                    with suppress(OSError):
                        self._poller.unregister(fd)
            probe.close()

    def check_soon(self, devno: Devno) -> None:
        """Something hinted at this filesystem: look in a moment, once for all hints until then, and
        again after a longer one.

        The moment lets other witnesses be stored first, and makes one look of a storm.
        """
        if not self._hinted:
            asyncio.get_running_loop().call_later(_HINT_S, self._check_hinted)
        self._hinted.add(devno)

    def check(self, devno: Devno) -> None:
        """Something hinted at this filesystem: look at once.

        What takes a helper process is asked right after this, and reported when it answers.
        """
        watched = self._watched.get(devno)
        if watched is None:
            return
        for probe in watched.probes:
            self._report(watched.superblock, probe.look())
        if devno not in self._asking:
            self._asking.add(devno)
            self._to_ask.put_nowait(devno)

    async def check_all(self) -> None:
        """Somebody may have missed something: look at everything, some at a time."""
        left = deque(self._watched)
        while left:
            until = time.monotonic() + _AT_ONCE_S
            with self._mounts.at_once():
                self.check(left.popleft())
                while left and time.monotonic() < until:
                    self.check(left.popleft())
            await asyncio.sleep(0)

    def lost(self) -> set[Devno]:
        """Filesystems of which a probe can read no more: they are unmounted, or were mounted again
        without anybody having noticed."""
        watched = self._watched.items()
        return {devno for devno, one in watched if any(probe.lost for probe in one.probes)}

    def health(self, devno: Devno) -> Health:
        """What the probes say of a filesystem, as of their last look."""
        watched = self._watched.get(devno)
        return worst_health(watched.probes) if watched is not None else Health.UNKNOWN

    def errors(self, devno: Devno) -> int | None:
        """How many errors are recorded as of the last look, None where nothing counts them."""
        watched = self._watched.get(devno)
        counts = [p.errors for p in watched.probes if p.errors is not None] if watched else []
        return sum(counts) if counts else None

    def report(self, superblock: Superblock, klass: EventClass, text: str, number: int) -> None:
        """Tell of a fact about a filesystem that somebody else has found (`number` is an errno)."""
        self._report(superblock, [Finding(klass=klass, text=text, errno=number)])

    def report_device(
        self,
        device: BlockDevice,
        klass: EventClass,
        text: str,
        number: int | None,
        target: str | None = None,
    ) -> None:
        """The same of a block device that other things rest on; `target` is what drives it, as
        kernel lines about it say (`dm-thin`)."""
        self._emit(
            klass,
            text,
            confirms=True,
            device=device.name,
            devno=device.devno,
            fstype=target,
            errno=number,
        )

    def _probes_of(self, superblock: Superblock) -> list[Probe]:
        volume = describe(superblock).volume_key
        seen = Seen(self._memory, volume)
        probes: list[Probe] = [OptionsProbe(superblock, self._mounts)]
        match superblock.fstype:
            case "ext2" | "ext3" | "ext4":
                probes.append(Ext4Probe(superblock, seen))
            case "xfs":
                probes.append(XfsProbe(superblock, self._mounts))
            case "btrfs":
                probes.append(BtrfsProbe(superblock, self._mounts, seen))
            case "f2fs":
                probes.append(F2fsProbe(superblock))
        if superblock.backing.kind == "loop":
            probes.append(LoopProbe(superblock))
        probes += [
            MdProbe(array, Seen(self._memory, f"{volume}#{array}"))
            for array in sorted(_devices_beneath(superblock))
            if array.startswith("md")
        ]
        return probes

    def _woken(self) -> None:
        if self._poller is None:
            return
        for fd, _ in self._poller.poll(0):
            devno = self._woken_by.get(fd)
            if devno is not None:
                self.check_soon(devno)

    def _check_hinted(self) -> None:
        hinted, self._hinted = self._hinted, set()
        self._check_these(hinted)
        if not self._hinted_before:
            asyncio.get_running_loop().call_later(_HINT_AGAIN_S, self._check_again)
        self._hinted_before |= hinted

    def _check_again(self) -> None:
        hinted, self._hinted_before = self._hinted_before, set()
        self._check_these(hinted)

    def _check_these(self, devnos: set[Devno]) -> None:
        with self._mounts.at_once():
            for devno in devnos:
                self.check(devno)

    async def _look_regularly(self) -> None:
        looked = time.monotonic()
        while True:
            all_s = len(self._watched) * _EACH_S
            await asyncio.sleep(max(_OFTEN_S, all_s))
            everything = time.monotonic() - looked >= max(_ALL_EVERY_S, _ROUND * all_s)
            if everything:
                looked = time.monotonic()
            try:
                await self._look(everything=everything)
            except Exception:  # a task border: without it all counters would be deaf for good
                log.exception("cannot look at the state of all filesystems")

    async def _look(self, *, everything: bool) -> None:
        if everything:
            await self.check_all()
            return
        for watched in list(self._watched.values()):
            for probe in watched.probes:
                if probe.often:
                    self._report(watched.superblock, probe.look())

    async def _ask_in_turn(self) -> None:
        while True:
            devno = await self._to_ask.get()
            self._asking.discard(devno)
            watched = self._watched.get(devno)
            for probe in watched.probes if watched else []:
                try:
                    found = await probe.ask()
                except Exception:  # a task border: the others have to be asked all the same
                    log.exception("cannot ask the filesystem %s", devno)
                    continue
                if watched is not None and self._watched.get(devno) is watched:
                    self._report(watched.superblock, found)

    def _report(self, superblock: Superblock, found: list[Finding]) -> None:
        if not found and not self._memory.unwritten:
            return
        for finding in found:
            self._emit(
                finding.klass,
                finding.text,
                confirms=True,
                device=superblock.device,
                devno=superblock.devno,
                fstype=superblock.fstype,
                errno=finding.errno,
                count=finding.count,
            )
        self._memory.write()


class _AfterReport:
    """A memory that is written when what was seen has been reported.

    A crash between the two repeats an event, and does not lose it.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._unwritten: dict[str, list[int]] = {}

    def load(self, volume: str) -> list[int] | None:
        return self._unwritten.get(volume) or self._memory.load(volume)

    def save(self, volume: str, seen: list[int]) -> None:
        self._unwritten[volume] = seen

    @property
    def unwritten(self) -> bool:
        """Whether anything was saved since `write`."""
        return bool(self._unwritten)

    def write(self) -> None:
        for volume, seen in self._unwritten.items():
            self._memory.save(volume, seen)
        self._unwritten.clear()


def _devices_beneath(superblock: Superblock) -> set[str]:
    devices = superblock.members or (superblock.devno,)
    return {name for devno in devices for name in block.beneath(devno)}
