"""f2fs flags: /sys/fs/f2fs/DEVICE/stat/{sb_status,cp_status}.

Follows Documentation/ABI/testing/sysfs-fs-f2fs. Both are sets of bits in hexadecimal. f2fs stops
writing by a flag of its checkpoint and stays `rw` in the mount table (Linux 6.12), so the flags
are the only state that tells.
"""

from __future__ import annotations

import errno
from pathlib import Path

from fswatchd.events import EventClass, Health
from fswatchd.inventory.model import Superblock
from fswatchd.sources.probes import SYSFS, Finding, Probe, read_number

# fs/f2fs/f2fs.h, SBI_NEED_FSCK and SBI_IS_SHUTDOWN; include/linux/f2fs_fs.h, CP_ERROR_FLAG and
# CP_FSCK_FLAG
_BITS = {
    "sb_status": (
        (0x40, EventClass.SHUTDOWN, errno.EIO, "it is shut down"),
        (0x04, EventClass.CORRUPTION, errno.EUCLEAN, "it has marked itself as needing fsck"),
    ),
    "cp_status": (
        (0x08, EventClass.READONLY, errno.EIO, "its checkpoint has failed: it writes no more"),
        (0x10, EventClass.CORRUPTION, errno.EUCLEAN, "its checkpoint asks for fsck"),
    ),
}
_HEALTH = {
    EventClass.SHUTDOWN: Health.SHUTDOWN,
    EventClass.READONLY: Health.READONLY,
    EventClass.CORRUPTION: Health.SUSPECT,
}


class F2fsProbe(Probe):
    """Flags of one superblock."""

    often = True

    def __init__(self, superblock: Superblock, sysfs: Path = SYSFS) -> None:
        self._directory = sysfs / "fs/f2fs" / superblock.device / "stat"
        self._set: set[tuple[str, int]] = set()

    def look(self) -> list[Finding]:
        """See Probe."""
        found, now, classes = [], set(), set()
        for name, bits in _BITS.items():
            value = read_number(self._directory / name, 16) or 0
            for bit, klass, number, text in bits:
                if not value & bit:
                    continue
                now.add((name, bit))
                classes.add(klass)
                if (name, bit) not in self._set:
                    text = f"{name} 0x{value:x}: {text}"
                    found.append(Finding(klass=klass, text=text, errno=number))
        self._set = now
        self.health = next((_HEALTH[k] for k in _HEALTH if k in classes), Health.UNKNOWN)
        return found
