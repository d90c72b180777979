"""xfs_healer(8) of xfsprogs 7, which repairs an XFS while it is in use: with no outage at all.

Where it runs, a repair here stands back: until it has given up, or had its time. What was healed is
told by a clone that is clean, not by its word.
"""

from __future__ import annotations

import time

from fswatchd.inventory.model import Superblock
from fswatchd.kernel import proc
from fswatchd.sources.xfs_healer import GIVEN_UP, HEALER
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

NAME = "xfs_healer"
_ITS_TIME_S = 300.0
_WAITS = f"{NAME} is repairing"
NS = 1_000_000_000


def stand_back(context: ActionContext, superblock: Superblock | None) -> StepEnded | None:
    """The ending of a step that leaves the filesystem to the healer; None where it should not."""
    if superblock is None or superblock.fstype != "xfs" or has_given_up(context):
        return None
    if time.time_ns() - context.incident.opened_ns > _ITS_TIME_S * NS:
        return None
    pid = watching(superblock)
    if pid is None:
        return None
    text = f"{_WAITS} {superblock.device} online (process {pid}): it has {_ITS_TIME_S:.0f} s"
    return refuse("left to the healer", text, Next.WAIT)


def has_healed(context: ActionContext) -> bool:
    """Whether this incident was left to it before."""
    return any(_WAITS in text for _, text in context.incident.log)


def has_given_up(context: ActionContext) -> bool:
    """Whether it has said that it cannot."""
    return any(HEALER in text and GIVEN_UP in text for _, text in context.incident.log)


def watching(superblock: Superblock) -> int | None:
    """The process that watches this filesystem, None where there is none.

    A VE may call a process as it likes: only one of root in the node's own user and process
    namespaces counts, with one of the filesystem's mount points as an argument.
    """
    for pid in proc.pids():
        if proc.command_name(pid) != NAME or not proc.is_of_the_node(pid):
            continue
        namespace = proc.mount_namespace_inode(pid)
        points = {
            place.mount.point for place in superblock.mounts if int(place.namespace) == namespace
        }
        if points & set(proc.arguments(pid)):
            return pid
    return None
