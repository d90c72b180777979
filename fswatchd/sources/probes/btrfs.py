"""btrfs device counters: /sys/fs/btrfs/UUID/devinfo/ID/{error_stats,missing} (Linux 5.14).

`error_stats` is kept on the disk and set back only by `btrfs device stats -z`. A read that failed
its checksum counts here although no event tells of it, also when a mirror had the right data; the
log tells the difference. Clean counters are no proof of health: a damaged tree block that the
tree checker refuses counts nowhere.

After an error that it cannot survive, btrfs is read-only like one that was remounted so; it is
asked which of the two it is.

Older kernels have the same counters behind BTRFS_IOC_GET_DEV_STATS, which is not asked here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fswatchd.events import EventClass, Health
from fswatchd.inventory.model import Superblock
from fswatchd.sources.probes import SYSFS, AskingProbe, Finding, Mounts, Seen, open_file

_COUNTERS = ("write_errs", "read_errs", "flush_errs", "corruption_errs", "generation_errs")
# Devices are added and removed by hand: their list is read anew at every so many looks.
_LIST_EVERY = 30
_KINDS = (
    (EventClass.IO_ERROR, errno.EIO, _COUNTERS[:3]),
    (EventClass.CORRUPTION, errno.EUCLEAN, _COUNTERS[3:]),
)


class BtrfsProbe(AskingProbe):
    """Counters of all devices of one superblock; their sums and the missing are remembered."""

    often = True

    def __init__(
        self, superblock: Superblock, mounts: Mounts, seen: Seen, sysfs: Path = SYSFS
    ) -> None:
        self._superblock = superblock
        self._mounts = mounts
        self._stopped = False
        self._directory = sysfs / "fs/btrfs" / superblock.uuid if superblock.uuid else None
        self._files: list[tuple[int, int | None]] = []
        self._looks = 0
        self._seen = seen
        known = seen.load()
        self._before = known if known and len(known) == len(_COUNTERS) + 1 else None

    def look(self) -> list[Finding]:
        """See Probe."""
        now = self._read()
        if now is None:
            return []
        self.errors = sum(now[:-1])
        self._judge()
        before = self._before or [0] * len(now)
        if now == self._before:
            return []
        self._before = now
        self._seen.save(now)
        found = []
        for klass, number, names in _KINDS:
            grown = [i for i in map(_COUNTERS.index, names) if now[i] > before[i]]
            if grown:
                text = ", ".join(f"{_COUNTERS[i]} {before[i]} -> {now[i]}" for i in grown)
                count = sum(now[i] - before[i] for i in grown)
                found.append(Finding(klass=klass, text=text, errno=number, count=count))
        if now[-1] > before[-1]:
            text = f"{now[-1]} of its devices are missing"
            found.append(Finding(klass=EventClass.DEGRADED, text=text))
        elif now[-1] < before[-1]:
            found.append(Finding(klass=EventClass.RECOVERED, text="a missing device is back"))
        return found

    async def _ask(self) -> list[Finding]:
        if "ro" not in (self._mounts.current_options(self._superblock) or ()):
            self._stopped = False
            self._judge()
            return []
        number = await self._mounts.btrfs_error(self._superblock)
        before, self._stopped = self._stopped, number != 0
        self._judge()
        if not self._stopped or before:
            return []
        text = "the kernel has aborted its transaction and made it read-only"
        return [Finding(klass=EventClass.READONLY, text=text, errno=number)]

    def _judge(self) -> None:
        if self._stopped:
            self.health = Health.READONLY
        else:
            self.health = Health.SUSPECT if self.errors else Health.UNKNOWN

    def close(self) -> None:
        """See Probe."""
        for counters, missing in self._files:
            os.close(counters)
            if missing is not None:
                os.close(missing)
        self._files = []

    def _read(self) -> list[int] | None:
        """The sums of all counters, and how many devices are missing; None when unknown."""
        if self._looks % _LIST_EVERY == 0:
            self._open()
        self._looks += 1
        sums = [0] * (len(_COUNTERS) + 1)
        known = False
        try:
            for counters_fd, missing_fd in self._files:
                counters = parse_error_stats(os.pread(counters_fd, 512, 0).decode("ascii"))
                known = known or bool(counters)
                for index, name in enumerate(_COUNTERS):
                    sums[index] += counters.get(name, 0)
                if missing_fd is not None:
                    sums[-1] += int(os.pread(missing_fd, 16, 0))
        except (OSError, ValueError):
            self._looks = 0  # a device was removed, or all is unmounted
            return None
        return sums if known else None

    def _open(self) -> None:
        self.close()
        if self._directory is None:
            return
        for device in sorted((self._directory / "devinfo").glob("*")):
            counters = open_file(device / "error_stats")
            if counters is not None:
                self._files.append((counters, open_file(device / "missing")))


def parse_error_stats(text: str) -> dict[str, int]:
    """`write_errs 0`, one counter a line; what has another form is left out.

    A device that has no counters yet says `invalid`.
    """
    counters = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in _COUNTERS and value.isascii() and value.isdecimal():
            counters[name] = int(value)
    return counters
