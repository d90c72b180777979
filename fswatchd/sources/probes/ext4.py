"""ext4's own error counter (Documentation/ABI/testing/sysfs-fs-ext4).

`errors_count` is part of the superblock; only e2fsck sets it back. It also counts the errors of
block groups, of which fanotify does not tell (fs/ext4/super.c, `__ext4_grp_locked_error`). `poll`
wakes only for filesystems with errors=continue and a journal (`update_super_work`).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fswatchd.events import EventClass, Health, printable
from fswatchd.inventory.model import Superblock
from fswatchd.sources.probes import (
    SYSFS,
    Finding,
    Probe,
    Seen,
    open_file,
    read_number,
    read_text,
)

# fs/ext4/ext4.h, EXT4_ERR_*
_ERRCODE = {
    2: (EventClass.IO_ERROR, errno.EIO),
    4: (EventClass.CORRUPTION, errno.EBADMSG),
    5: (EventClass.CORRUPTION, errno.EUCLEAN),
    6: (EventClass.SPACE, errno.ENOSPC),
    8: (EventClass.READONLY, errno.EROFS),
    16: (EventClass.READONLY, errno.ESHUTDOWN),
}
# This function reports nothing but a journal that was aborted before, whatever the code is.
_ABORTED_BEFORE = "ext4_journal_check_start"


class Ext4Probe(Probe):
    """errors_count of one superblock; [errors_count, last_error_time] is remembered."""

    often = True

    def __init__(self, superblock: Superblock, seen: Seen, sysfs: Path = SYSFS) -> None:
        self._directory = sysfs / "fs/ext4" / superblock.device
        self._seen = seen
        self._known = seen.load()
        self._text = b""
        self._fd = open_file(self._directory / "errors_count")
        if self._fd is not None:
            self.wakes = (self._fd,)
            self.errors = 0

    def look(self) -> list[Finding]:
        """See Probe."""
        if self._fd is None or self.errors is None:
            return []
        try:
            text = os.pread(self._fd, 32, 0)
            if text == self._text:
                return []  # as nearly always, on a thousand filesystems
            count = int(text)
        except OSError:
            # Unmounted (ENODEV). The inventory will tell, but for a mount with the same numbers.
            self.lost, self.health = True, Health.UNKNOWN
            return []
        except ValueError:
            return []
        self._text = text
        known, self._known = self._known, None
        self.health = Health.SUSPECT if count else Health.OK
        before, self.errors = self.errors, count
        if count <= before:
            return []
        last_time = read_number(self._directory / "last_error_time") or 0
        self._seen.save([count, last_time])
        if known == [count, last_time]:
            return []  # recorded, and reported, before this mount
        code = read_number(self._directory / "last_error_errcode") or 0
        klass, number = _ERRCODE.get(code, (EventClass.CORRUPTION, errno.EUCLEAN))
        where = printable(read_text(self._directory / "last_error_func") or "", 64)
        if where == _ABORTED_BEFORE:
            klass, number = EventClass.READONLY, errno.EROFS
        told = f"errors_count {before} -> {count}, last error in {where or 'an unknown place'}"
        return [Finding(klass=klass, text=told, errno=number, count=count - before)]

    def close(self) -> None:
        """See Probe."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd, self.wakes = None, ()
