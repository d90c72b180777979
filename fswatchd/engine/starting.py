"""VEs that have only just begun to start, and what is not theirs yet.

The mount namespace of a container begins as a copy of the node's, and stays one until its runtime
has changed the root. Seen in between, the VE has every filesystem of the node mounted, and would be
named, told and asked for by rules in incidents that are none of its own. Such a copy looks like a
mount that the VE has for good. What tells them apart is time: the next look.
"""

from __future__ import annotations

import os
import time

from fswatchd.devno import Devno
from fswatchd.inventory.model import Superblock, VeId
from fswatchd.inventory.view import NodeView, Users

# Far more than a runtime takes from the first process to the new root.
_START_NS = 10_000_000_000
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def copies(view: NodeView, found: Superblock) -> tuple[VeId, ...]:
    """The VEs that use a filesystem perhaps only by such a copy: it is mounted on the node as well,
    they are younger than a start may take, and do not declare it as a volume of theirs."""
    users = view.users.get(found.devno, Users()).ves
    if not any(place.namespace == view.node_namespace for place in found.mounts):
        return ()
    born_after = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _START_NS
    own = view.owner_of_volume(found)
    return tuple(
        ve_id
        for ve_id in users
        if ve_id != own
        and (ve := view.ves.get(ve_id)) is not None
        and ve.init_started is not None
        and ve.init_started * _TICK_NS > born_after
    )


def concerned(view: NodeView, devno: Devno) -> tuple[tuple[VeId, ...], tuple[VeId, ...]]:
    """The VEs that use a filesystem or device, and those that depend on it through what rests on
    it. Without those whose use of it may be a copy, but for their own images that lie on it."""
    direct, through = view.users.get(devno, Users()).ves, view.dependents(devno).ves
    found = view.mounted(devno)
    copied = copies(view, found) if found is not None else ()
    if not copied:
        return direct, through
    resting = tuple(ve_id for ve_id in copied if _rests_on(view, ve_id, devno))
    return tuple(ve_id for ve_id in direct if ve_id not in copied), (*through, *resting)


def _rests_on(view: NodeView, ve_id: VeId, devno: Devno) -> bool:
    images = [image for image, owner in view.image_owners.items() if owner == ve_id]
    hosts = [host for image in images for host in view.hosts_of(image)]
    devices = [device for device, owner in view.device_owners.items() if owner == ve_id]
    return any(devno in (one, *view.beneath(one)) for one in (*hosts, *devices))
