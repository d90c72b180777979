"""Whom an incident's filesystem belongs to, as the node is now: what guards and rules ask about."""

from __future__ import annotations

from collections.abc import Iterable

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.mounted_again import is_unmounted
from fswatchd.events import Domain, VeState, printable
from fswatchd.incidents import Incident, State
from fswatchd.inventory import bases, ownership
from fswatchd.inventory.model import Superblock, Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.situation import Copies, Scope, VeFacts


def scope(
    view: NodeView, book: IncidentBook, incident: Incident, copy_labels: Iterable[str] = ()
) -> Scope:
    """See the module. `copy_labels` name the groups of copies that rules ask about."""
    if incident.domain is Domain.STORM:
        return Scope()
    gone_over = view.gone_over(incident.filesystem)
    devno = None if gone_over else incident.filesystem.devno
    superblock = view.superblocks.get(devno) if devno else None
    ves: tuple[str, ...] = incident.ves
    foreign: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    if superblock is not None:
        users = view.users[superblock.devno]
        ves, foreign = users.ves, users.foreign
        through = view.dependents(superblock.devno)
        dependents = (*through.foreign, *through.ves)
        children = bases.children(view, superblock.devno)
    elif devno is not None and devno in view.devices:
        # Nothing is mounted from it: those whose filesystems rest on it, and who swaps to it.
        through = view.dependents(devno)
        ves, foreign = tuple(dict.fromkeys((*ves, *through.ves))), through.foreign
        if (own := view.own.get(devno)) is not None:
            foreign = (own, *foreign)
    elif incident.filesystem.devno is None and incident.filesystem.image is not None:
        foreign = view.own_image(incident.filesystem.image)
    if superblock is None and (image := incident.filesystem.image_inode) is not None:
        children = bases.children_of_image(view, (Devno.parse(image[0]), image[1]))
    known = [ve for name in ves if (ve := view.ves.get(VeId(name))) is not None]
    devices, filesystems = _beneath(view, superblock)
    return Scope(
        ves=tuple(_facts(ve) for ve in known),
        foreign_users=foreign,
        dependents=dependents,
        children=tuple(printable(name) for name in children),
        devices=devices,
        filesystems=filesystems,
        shared_with=_shared_with(view, incident, devno),
        role=_role(incident, superblock, known),
        copies=_copies(view, book, incident, known, copy_labels),
        held_by=_held_by(book, incident, ves),
        gone_over=f"{incident.filesystem.device} belongs to another filesystem now"
        if gone_over
        else None,
        unmounted=incident.domain is Domain.DAMAGE and is_unmounted(view, incident.filesystem),
    )


def _facts(ve: Ve) -> VeFacts:
    return VeFacts(
        ve_id=ve.ve_id,
        name=ve.name,
        platform=ve.platform,
        labels=ve.labels,
        labels_known=ve.labels_known,
        busy=ve.busy,
        scratch=ve.scratch,
        hands_off=ve.hands_off,
        unrepairable=ve.unrepairable,
        aliases=ve.aliases,
    )


def _beneath(
    view: NodeView, superblock: Superblock | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The block devices that it rests on, itself among them, and the filesystems of its image."""
    if superblock is None:
        return (), ()
    devices, filesystems = [str(superblock.devno)], []
    for devno in view.beneath(superblock.devno):
        # The filesystem on a disk often has the disk's own number.
        if devno in view.devices:
            devices.append(str(devno))
        if view.mounted(devno) is not None or devno in view.remote:
            filesystems.append(f"the filesystem {devno}")
    if superblock.backing.image_devno is not None and not filesystems:
        filesystems.append(f"the filesystem {view.host(superblock.backing.image_devno)}")
    return tuple(devices), tuple(filesystems)


def _role(incident: Incident, superblock: Superblock | None, ves: list[Ve]) -> str:
    if superblock is not None and superblock.mounts:
        inside = {ve.namespace for ve in ves}
        points = [m.mount.point for m in superblock.mounts if m.namespace in inside]
        if points:
            return "rootfs" if "/" in points else "data"
    image, device = incident.filesystem.image, incident.filesystem.device
    for volume in (volume for ve in ves for volume in ve.volumes):
        if (image is not None and volume.image == image) or (
            device is not None and volume.device == f"/dev/{device}"
        ):
            return "rootfs" if volume.mountpoint == "/" else "data"
    return ""


def _copies(
    view: NodeView, book: IncidentBook, incident: Incident, ves: list[Ve], labels: Iterable[str]
) -> dict[str, Copies]:
    """Of the VE, by the label that names the group: who else is in it, and is well."""
    own = {ve.ve_id for ve in ves}
    values = {label: ve.labels[label] for label in labels for ve in ves if ve.labels.get(label)}
    if not values:
        return {}
    # Whatever is not well with a VE may be what keeps its service from answering.
    unwell = {
        ve
        for one in book.open_incidents()
        if one.incident_id != incident.incident_id and one.domain is not Domain.STORM
        for ve in one.ves
    }
    found = {}
    for label, value in values.items():
        others = [
            ve for ve in view.ves.values() if ve.labels.get(label) == value and ve.ve_id not in own
        ]
        healthy = [ve.ve_id for ve in others if _runs(ve) and ve.ve_id not in unwell]
        found[label] = Copies(
            value=printable(value), others=tuple(ve.ve_id for ve in others), healthy=tuple(healthy)
        )
    return found


def _held_by(book: IncidentBook, incident: Incident, ves: Iterable[str]) -> str | None:
    for one in book.open_incidents():
        if one.state is not State.NEEDS_OPERATOR or one.incident_id == incident.incident_id:
            continue
        if one.domain is Domain.STORM:
            continue  # has a guard of its own
        mine = not set(ves).isdisjoint(one.direct_ves)
        if mine or one.filesystem.is_volume_of(incident.filesystem):
            return one.incident_id
    return None


def _runs(ve: Ve) -> bool:
    return ve.state is VeState.RUNNING and not ve.busy


def _shared_with(view: NodeView, incident: Incident, devno: Devno | None) -> str | None:
    """Why another node may own what the incident is about; None where nothing says so."""
    found = None
    if incident.domain is Domain.REMOTE:
        server = incident.filesystem.server or "another machine"
        return f"{printable(server)} serves it: nothing of it can be repaired from here"
    if devno is not None:
        found = ownership.shared_with(view, devno)
    elif incident.filesystem.image is not None:
        found = ownership.shared_image(view, incident.filesystem.image)
    return f"{found}; {ownership.WHAT_NOW}" if found else None
