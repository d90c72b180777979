"""md arrays beneath a filesystem: /sys/block/mdN/md/{degraded,array_state}.

Follows Documentation/admin-guide/md.rst. The kernel wakes `poll` on both when they change. A
degraded array loses nothing yet; one whose state is `broken` (raid0 and linear, Linux 5.4) has
lost a member and with it data.
"""

from __future__ import annotations

import os
from pathlib import Path

from fswatchd.events import EventClass, printable
from fswatchd.sources.probes import SYSFS, Finding, Probe, Seen, open_file, read_number, read_text


class MdProbe(Probe):
    """One array beneath one superblock; how many devices it missed is remembered."""

    def __init__(self, array: str, seen: Seen, sysfs: Path = SYSFS) -> None:
        self._array = array
        self._seen = seen
        self._directory = sysfs / "block" / array / "md"
        self._degraded = (seen.load() or [0])[0]
        self._broken = False
        opened = (open_file(self._directory / name) for name in ("degraded", "array_state"))
        self.wakes = tuple(fd for fd in opened if fd is not None)

    def look(self) -> list[Finding]:
        """See Probe."""
        for fd in self.wakes:
            # Until it is read, poll goes on saying that it has changed.
            try:
                os.pread(fd, 64, 0)
            except OSError:
                self.lost = True  # the array was stopped, and perhaps assembled again
                return []
        found = []
        before, self._degraded = self._degraded, read_number(self._directory / "degraded") or 0
        if self._degraded != before:
            self._seen.save([self._degraded])
        state = printable(read_text(self._directory / "array_state") or "", 32)
        was_broken, self._broken = self._broken, state == "broken"
        name = printable(self._array, 32)
        if self._broken and not was_broken:
            text = f"array {name} beneath it has failed (array_state {state})"
            found.append(Finding(klass=EventClass.DEVICE_LOST, text=text))
        if self._degraded > before:
            text = f"array {name} beneath it misses {self._degraded} devices (array_state {state})"
            found.append(Finding(klass=EventClass.DEGRADED, text=text))
        elif before and not self._degraded:
            text = f"array {name} beneath it is complete again"
            found.append(Finding(klass=EventClass.RECOVERED, text=text))
        return found

    def close(self) -> None:
        """See Probe."""
        for fd in self.wakes:
            os.close(fd)
        self.wakes = ()
