"""Who outside of a VE would keep its volumes mounted once it is stopped.

A backup that reads them through the node, an admin's shell, a service with a copy of the mount:
after the stop such a volume can neither be unmounted nor repaired, and the VE cannot be started
beside it. They are asked for first, and while there is one the VE goes on as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from fswatchd.events import printable
from fswatchd.inventory.model import Superblock, Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import openfiles, proc
from fswatchd.kernel.openfiles import Hold
from fswatchd.repair import healer, ve_control
from fswatchd.steps import ActionContext, Next, refuse

# Who holds something at both ends of that time does not just look in for a moment.
_LASTING_S = 1.0
_SHOWN = 3


async def require_none(
    context: ActionContext,
    ve: Ve,
    target: Superblock | None,
    *,
    frozen: bool = False,
    patience_s: float = 0.0,
) -> None:
    """Ask right before the VE is stopped. Raises StepEnded, to be asked again later.

    About the filesystem that is repaired, or all where that is None. While it is frozen who writes
    there waits for us, and lets go afterwards. With `patience_s` they are waited for here so long:
    what has been prepared until now would be lost otherwise.
    """
    if not ve_control.can_tell_tasks(ve):
        return  # then nobody can tell either who is an outsider

    async def look() -> list[Hold]:
        found = await asyncio.to_thread(holding, context.inventory.view, ve, target)
        return [hold for hold in found if not (frozen and hold.writes)]

    deadline = time.monotonic() + patience_s
    present = {hold.pid for hold in await look()}
    while present:
        await asyncio.sleep(_LASTING_S)
        now = await look()
        lasting = [hold for hold in now if hold.pid in present]
        present = {hold.pid for hold in now}
        if not lasting:
            return
        more = f" and {len(lasting) - _SHOWN} more" if len(lasting) > _SHOWN else ""
        text = f"{', '.join(map(_describe, lasting[:_SHOWN]))}{more}"
        if time.monotonic() >= deadline:
            hint = f"{ve.ve_id} is not stopped: its volume could not be unmounted then"
            raise refuse("in use", f"{text}; {hint}", Next.WAIT)
        context.progress(None, f"{text}; that is waited for")


def holding(view: NodeView, ve: Ve, target: Superblock | None = None) -> list[Hold]:
    """What processes that do not end with the VE hold of the filesystems that are its alone.

    Of those beside `target` only of such on images, which a start would mount a second time.
    """
    found = [
        superblock
        for superblock in view.superblocks_of(ve.ve_id)
        if _is_its_alone(view, superblock, ve.ve_id)
        and (
            target is None or superblock.devno == target.devno or superblock.backing.kind == "loop"
        )
    ]
    places = [place for superblock in found for place in superblock.mounts]
    mount_ids = {place.mount.proc_id for place in places}
    points: dict[int, list[str]] = {}
    for place in places:
        if view.owners.get(place.namespace) != ve.ve_id:
            points.setdefault(place.namespace, []).append(place.mount.point)
    of_ves: set[int] = {space for space, owner in view.owners.items() if VeId(owner) in view.ves}
    its_own: set[int | None] = {*ve_control.tasks(ve), *_keepers(ve)}
    # What it cannot mend xfs_healer opens again and again, and lets go of each time.
    its_own |= {healer.watching(superblock) for superblock in found if superblock.fstype == "xfs"}
    return [
        hold
        for pid in proc.pids()
        if pid not in its_own
        and (namespace := proc.mount_namespace_inode(pid)) is not None
        and namespace not in of_ves
        for hold in openfiles.holds(pid, mount_ids, points.get(namespace, ()))
    ]


def _is_its_alone(view: NodeView, superblock: Superblock, ve_id: VeId) -> bool:
    users = view.users[superblock.devno]
    return users.ves == (ve_id,) and not users.foreign


def _keepers(ve: Ve) -> Iterator[int]:
    """What has started the VE and ends with it: the monitor of LXC, conmon, systemd-nspawn."""
    above = proc.parent(ve.init_pid) if ve.init_pid is not None else None
    while above is not None and above > 1:
        yield above
        above = proc.parent(above)


def _describe(hold: Hold) -> str:
    name = printable(proc.command_name(hold.pid))
    path = printable(hold.path)
    if hold.by == "exe":
        return f"{name} (pid {hold.pid}) is {path}"
    if hold.by in {"cwd", "root"}:
        return f"{name} (pid {hold.pid}) stands in {path}"
    return f"{name} (pid {hold.pid}) has {path} open"
