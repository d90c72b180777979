"""What a filesystem still lets its VE do, as the kernel shows it."""

from __future__ import annotations

import enum
import errno

from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock


class Condition(enum.Enum):
    """What the filesystem still lets the VE do."""

    WRITABLE = "it reads and writes"
    FROZEN = "it reads; writers wait for us"
    ABORTED = "it reads; the kernel has stopped writes"
    SHUTDOWN = "it neither reads nor writes"
    STOPPED = "the VE is stopped"


async def of(inventory: Inventory, superblock: Superblock) -> Condition | None:
    """The condition of a mounted filesystem; None when it is no longer mounted.

    ext4 shows it in its options. A shut-down XFS shows it nowhere, but fails `stat` of its root;
    a btrfs that was aborted is read-only like one that was remounted so, and can be asked. Raises
    OSError, HelperError or TimeoutError where one of those two does not answer.
    """
    options = inventory.current_options(superblock)
    if options is None:
        return None
    if "shutdown" in options:
        return Condition.SHUTDOWN
    if "emergency_ro" in options:
        return Condition.ABORTED
    if superblock.fstype == "xfs" and await inventory.root_error(superblock) == errno.EIO:
        return Condition.SHUTDOWN
    if superblock.fstype == "btrfs" and "ro" in options and await inventory.btrfs_error(superblock):
        return Condition.ABORTED
    return Condition.WRITABLE
