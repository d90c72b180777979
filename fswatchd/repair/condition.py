"""What a filesystem still lets its VE do, as the kernel shows it."""

from __future__ import annotations

import enum
import errno

from fswatchd.helpers.client import HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.repair.scope import Target
from fswatchd.steps import ActionContext, Next, refuse


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


async def seen(context: ActionContext, target: Target) -> Condition:
    """The same of a repair's target; STOPPED where it is not mounted. Raises StepEnded."""
    if target.superblock is None:
        return Condition.STOPPED
    try:
        found = await of(context.inventory, target.superblock)
    except (OSError, HelperError, TimeoutError) as error:
        raise refuse(
            "cannot tell", f"{target.superblock.device} does not answer: {error}"
        ) from None
    if found is None:
        text = f"{target.superblock.device} is no longer mounted"
        raise refuse("cancelled", text, Next.CANCELLED)
    return found
