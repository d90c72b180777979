"""Options that the kernel sets by itself: emergency_ro and shutdown (ext4, Linux 6.15).

Not here: `ro`. It comes from an administrator's remount, from `umount /` in a VE that stops
(fs/namespace.c, `do_umount_root`), or from the kernel after an error, and looks the same. Whether
it was an error the filesystem's own probe finds out: ext4 has counted it, btrfs can be asked.
"""

from __future__ import annotations

import errno

from fswatchd.events import EventClass, Health
from fswatchd.inventory.model import Superblock
from fswatchd.sources.probes import Finding, Mounts, Probe

_FLAGS = {
    "emergency_ro": (EventClass.READONLY, errno.EROFS),
    "shutdown": (EventClass.SHUTDOWN, errno.ESHUTDOWN),
}


class OptionsProbe(Probe):
    """Options of one superblock."""

    def __init__(self, superblock: Superblock, mounts: Mounts) -> None:
        self._superblock = superblock
        self._mounts = mounts
        self._flags: frozenset[str] = frozenset()

    def look(self) -> list[Finding]:
        """See Probe."""
        options = self._mounts.current_options(self._superblock)
        if options is None:
            return []
        found = []
        flags = frozenset(options) & _FLAGS.keys()
        fresh, self._flags = flags - self._flags, flags
        for flag in sorted(fresh):
            klass, number = _FLAGS[flag]
            text = f"the superblock has the option {flag}"
            found.append(Finding(klass=klass, text=text, errno=number))
        if "shutdown" in flags:
            self.health = Health.SHUTDOWN
        else:
            self.health = Health.READONLY if flags else Health.UNKNOWN
        return found
