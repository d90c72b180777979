"""Whether an XFS is shut down: no option, no sysfs file and no statfs(2) shows it, but stat does.

`stat` of any inode of a shut-down XFS fails with EIO and touches no disk (fs/xfs/xfs_iops.c,
`xfs_vn_getattr`). Its root is asked through the mount helper, with its deadline: the daemon keeps
no descriptor on a tenant's filesystem, which would keep its device busy. XFS has no counters.
"""

from __future__ import annotations

import errno

from fswatchd.events import EventClass, Health
from fswatchd.inventory.model import Superblock
from fswatchd.sources.probes import AskingProbe, Finding, Mounts


class XfsProbe(AskingProbe):
    """One superblock."""

    def __init__(self, superblock: Superblock, mounts: Mounts) -> None:
        self._superblock = superblock
        self._mounts = mounts

    async def _ask(self) -> list[Finding]:
        shut_down = await self._mounts.root_error(self._superblock) == errno.EIO
        before = self.health
        self.health = Health.SHUTDOWN if shut_down else Health.UNKNOWN
        if not shut_down or before is Health.SHUTDOWN:
            return []
        text = "stat of its root fails with EIO: it is shut down"
        return [Finding(klass=EventClass.SHUTDOWN, text=text, errno=errno.EIO)]
