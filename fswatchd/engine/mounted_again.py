"""Incidents whose volume was unmounted, by a boot or its VE: found again where it is mounted since.

A boot deals device numbers anew, and counts attachments from 1: what an incident remembers of both
is nobody's any more (`Filesystem.boot`). Not here: what a mount since the boot says of the damage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from fswatchd.events import Domain, names_filesystem
from fswatchd.incidents import UNDECIDED, Filesystem, Incident
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, VeId
from fswatchd.inventory.view import NodeView, describe


def is_put_down(inventory: Inventory, incident: Incident) -> bool:
    """Whether damage is of a volume that a VE has, and has not mounted (`NodeView.successor`).

    It is not over by that, and not every filesystem keeps a record of it that the next mount would
    show (XFS, btrfs).
    """
    return (
        incident.state in UNDECIDED
        and incident.domain is Domain.DAMAGE
        and is_unmounted(inventory.view, incident.filesystem)
        and is_known(inventory, incident.direct_ves)
        and not _in_its_place(inventory.view, incident)
    )


def is_known(inventory: Inventory, ves: Sequence[str]) -> bool:
    """Whether one of these VEs is known, or its platform cannot be asked just now."""
    known, problems = inventory.view.ves, inventory.problems
    return any(ve in known or ve.partition(":")[0] in problems for ve in ves)


def has_another(view: NodeView, incident: Incident) -> bool:
    """Whether its VE has mounted something else from the same path: a backup, for example."""
    known = incident.filesystem
    if known.image is None or known.uuid is None:
        return False
    return any(now.uuid not in {None, known.uuid} for now in _in_its_place(view, incident))


def _in_its_place(view: NodeView, incident: Incident) -> list[Filesystem]:
    """What its VEs have mounted from the same image or device, by its name."""
    known = incident.filesystem
    mounted = [
        view.describe(found)
        for ve in incident.direct_ves
        for found in view.superblocks_of(VeId(ve))
    ]
    if known.image is not None:
        return [now for now in mounted if now.image == known.image]
    return [now for now in mounted if now.image is None and now.device == known.device]


def is_unmounted(view: NodeView, known: Filesystem) -> bool:
    """Whether a filesystem that was mounted once is so no longer, as far as its number tells."""
    was_mounted = known.devno is not None and names_filesystem(known.fstype)
    return was_mounted and view.attached(known) is None


def put_down(
    view: NodeView, incidents: Sequence[Incident], filesystem: Filesystem, domain: Domain
) -> Incident | None:
    """The newest of these that is about an image that was mounted then; None where there is none
    that nobody has begun to repair."""
    if filesystem.image is None:
        return None
    wanted = (domain, filesystem.image)
    return next(
        (
            one
            for one in reversed(incidents)
            if (one.domain, one.filesystem.image) == wanted
            and one.state in UNDECIDED
            and is_unmounted(view, one.filesystem)
        ),
        None,
    )


def mounted_since(view: NodeView, incident: Incident) -> Incident | None:
    """What `taken_up` finds, and also what was unmounted within this boot, if nobody has begun to
    repair it."""
    known = incident.filesystem
    if known.boot is not None:
        return taken_up(view, incident)
    if incident.state not in UNDECIDED or not is_unmounted(view, known):
        return None
    found = view.successor(known, incident.direct_ves)
    if found is None:
        return None
    text = f"the volume was mounted again as {found.device}"
    return moved(incident, found).noted(time.time_ns(), text)


def moved(incident: Incident, found: Superblock) -> Incident:
    """The incident about its volume as it is mounted now, within the same boot.

    What a repair would do was seen of what was there before; approved it stays while it is the same
    file. The errors of a loop device came from beneath, where they are remembered; this is another
    one.
    """
    again = replace(incident, filesystem=describe(found), preview=None)
    if found.backing.kind == "loop":
        again = replace(again, device_errors=0, device_since_ns=None)
    if again.filesystem.image_inode != incident.filesystem.image_inode:
        again = replace(again, approved_by=None)
    return again


def taken_up(view: NodeView, incident: Incident) -> Incident | None:
    """The incident about what is mounted now, in the same state; None where it is of this boot, or
    its volume is not mounted. Whose it is now is added; who was concerned once stays named."""
    known = incident.filesystem
    if known.boot is None:
        return None
    if known.uuid is None and known.image is None and not names_filesystem(known.fstype):
        return _of_device(view, incident)
    found = view.successor(incident.filesystem, incident.direct_ves)
    if found is None:
        return None
    new = tuple(ve for ve in view.affected(found.devno) if ve not in incident.ves)
    through = tuple(ve for ve in new if ve in view.dependents(found.devno).ves)
    again = replace(
        incident,
        filesystem=view.describe(found),
        ves=(*incident.ves, *new),
        through=(*incident.through, *through),
    )
    text = f"the node was booted since; the volume was mounted again as {found.device}"
    return again.noted(time.time_ns(), text)


def _of_device(view: NodeView, incident: Incident) -> Incident | None:
    """Nothing that an incident keeps tells one disk from another: it is taken for the one of that
    name, which is trusted later then, and not sooner. Names of loop devices mean nothing."""
    known = incident.filesystem
    named = [one for one in view.devices.values() if one.name == known.device]
    if len(named) != 1 or named[0].kind == "loop":
        return None
    found = replace(known, boot=None, devno=named[0].devno, disk_sequence=named[0].disk_sequence)
    text = f"the node was booted since; the {known.device} of now is taken for what it was"
    return replace(incident, filesystem=found).noted(time.time_ns(), text)
