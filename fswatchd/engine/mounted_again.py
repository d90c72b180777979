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
from fswatchd.kernel import loop


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
        and not _has_made_way(inventory.view, incident)
    )


def is_known(inventory: Inventory, ves: Sequence[str]) -> bool:
    """Whether one of these VEs is known, or its platform cannot be asked just now."""
    known, problems = inventory.view.ves, inventory.problems
    return any(ve in known or ve.partition(":")[0] in problems for ve in ves)


def has_another(view: NodeView, incident: Incident) -> bool:
    """Whether its VE has mounted something else from the same path: a backup, for example."""
    known = incident.filesystem
    return known.image is not None and known.uuid is not None and _has_made_way(view, incident)


def _has_made_way(view: NodeView, incident: Incident) -> bool:
    """Whether its VEs have another filesystem in its place by now; any, where nothing tells what
    was there. One that no look has named yet may be the same."""
    known = incident.filesystem
    mounted = [
        view.describe(found)
        for ve in incident.direct_ves
        for found in view.superblocks_of(VeId(ve))
    ]
    if known.image is not None:
        in_its_place = [now for now in mounted if now.image == known.image]
    else:
        in_its_place = [now for now in mounted if now.image is None and now.device == known.device]
    return any(known.uuid is None or now.uuid not in {None, known.uuid} for now in in_its_place)


def is_unmounted(view: NodeView, known: Filesystem) -> bool:
    """Whether a filesystem that was mounted once is so no longer, as far as its number tells."""
    was_mounted = known.devno is not None and names_filesystem(known.fstype)
    return was_mounted and view.attached(known) is None


def is_unnamed(view: NodeView, known: Filesystem) -> bool:
    """Whether what is mounted with its number may be it: a btrfs that no look has named yet."""
    if known.devno is None or known.boot is not None or known.unmounted:
        return False
    found = view.superblocks.get(known.devno)
    if found is None or known.devno.major != 0:
        return False
    return (found.fstype, found.uuid) == (known.fstype, None)


def unmounted(known: Filesystem) -> Filesystem:
    """A filesystem that was seen unmounted: only `NodeView.successor` finds it again."""
    return replace(known, unmounted=True, mountpoints=())


def find(
    view: NodeView,
    incidents: Sequence[Incident],
    filesystem: Filesystem,
    domain: Domain,
    ves: Sequence[str],
) -> Incident | None:
    """The newest of these that is about this filesystem of these VEs without its number telling so:
    as `mounted_since` has it where it is mounted, and as it is where it is mounted nowhere, or no
    look has named yet what is."""
    if filesystem.devno in view.superblocks:
        for one in reversed(incidents):
            again = mounted_since(view, one) if one.domain is domain else None
            if again is not None and again.filesystem.key == filesystem.key:
                return again
        if filesystem.uuid is not None:
            return None
    return _put_down(view, incidents, filesystem, domain, ves)


def _put_down(
    view: NodeView,
    incidents: Sequence[Incident],
    filesystem: Filesystem,
    domain: Domain,
    ves: Sequence[str],
) -> Incident | None:
    """One that is about an image, or a device still attached, that was mounted then, and that
    nobody has begun to repair."""
    return next(
        (
            one
            for one in reversed(incidents)
            if one.domain is domain
            and one.state in UNDECIDED
            and _is_nowhere(view, one.filesystem)
            and _is_of_one_volume(one.filesystem, filesystem)
            and not (ves and one.direct_ves and set(ves).isdisjoint(one.direct_ves))
        ),
        None,
    )


def _is_of_one_volume(known: Filesystem, other: Filesystem) -> bool:
    if known.image is None and other.image is None and known.devno is not None:
        attached = (known.devno, known.disk_sequence, known.boot)
        # Where nothing counts them (Linux before 5.15) a loop device is another one each time.
        tells = known.disk_sequence or known.devno.major not in {0, loop.LOOP_MAJOR}
        return bool(tells) and attached == (other.devno, other.disk_sequence, None)
    inodes = {known.image_inode, other.image_inode} - {None}
    return known.image == other.image and len(inodes) < 2


def _is_nowhere(view: NodeView, known: Filesystem) -> bool:
    """Also an image that somebody wanted repaired while it was unmounted."""
    return is_unmounted(view, known) or (known.devno is None and known.image is not None)


def mounted_since(view: NodeView, incident: Incident) -> Incident | None:
    """What `taken_up` finds, and also what was unmounted within this boot, if nobody has begun to
    repair it."""
    known = incident.filesystem
    if known.boot is not None:
        return taken_up(view, incident)
    if incident.state not in UNDECIDED or not _is_nowhere(view, known):
        return None
    found = view.successor(known, incident.direct_ves)
    if found is None:
        return None
    return moved(incident, found, f"the volume was mounted again as {found.device}")


def moved(incident: Incident, found: Superblock, text: str) -> Incident:
    """The incident about its volume as it is mounted now, within the same boot; `text` says so.

    What a repair would do was seen of what was there before; approved it stays while it is the same
    file, and who has asked for the repair of what was mounted nowhere has asked for that only. The
    errors of a loop device came from beneath, where they are remembered; this is another one.
    """
    known = incident.filesystem
    again = replace(incident, filesystem=describe(found), preview=None)
    if found.backing.kind == "loop":
        again = replace(again, device_errors=0, device_since_ns=None)
    if again.filesystem.image_inode != known.image_inode:
        again = replace(again, approved_by=None)
    if known.devno is None and incident.requested_by is not None:
        again = replace(again, requested_by=None, requested_ns=None, forced=False)
        text += f"; what {incident.requested_by} asked for was a repair of it unmounted: ask again"
    return again.noted(time.time_ns(), text)


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
