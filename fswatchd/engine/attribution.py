"""From what an event names to the filesystem and the VEs it is about."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fswatchd.events import FsEvent
from fswatchd.incidents import Filesystem
from fswatchd.inventory import ownership
from fswatchd.inventory.model import Superblock, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block, loop
from fswatchd.kernel.remote import is_remote

# Events wait meanwhile.
_PATIENCE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Whose it is. `superblock` is None where nothing is mounted from the device.

    `ves` are all that depend on it, those in `through` only through what rests on it.
    """

    filesystem: Filesystem
    ves: tuple[VeId, ...] = ()
    through: tuple[VeId, ...] = ()
    superblock: Superblock | None = None


def attribute(event: FsEvent, view: NodeView) -> Attribution:
    """The filesystem and the VEs of an event, as the node is in `view`.

    A device name from a kernel line is looked up now; that is right because lines are read within
    milliseconds, and wrong for a line that lay about while its device was given to somebody else:
    where that can be told (`FsEvent.past`, `Intake`) nobody asks here.
    """
    devno = event.devno
    if devno is None and event.device is not None:
        devno = block.devno_of(event.device)
    if devno is None and event.device is None and is_remote(event.fstype or ""):
        return of_server(view, event.fstype, event.server)
    superblock = view.superblock_on(devno) if devno else None
    if superblock is not None:
        return Attribution(
            filesystem=view.describe(superblock),
            ves=view.affected(superblock.devno),
            through=view.dependents(superblock.devno).ves,
            superblock=superblock,
        )
    known = view.devices.get(devno) if devno else None
    filesystem = Filesystem(
        devno=devno,
        device=known.name if known is not None else event.device,
        fstype=event.fstype,
        disk_sequence=block.disk_sequence(devno) if devno else None,
    )
    if devno is None:
        return Attribution(filesystem=filesystem)
    owner = view.device_owners.get(devno)
    if owner is None and devno in view.devices:
        through = view.dependents(devno).ves
        return Attribution(filesystem=filesystem, ves=through, through=through)
    if owner is None and devno.major == loop.LOOP_MAJOR:
        owner, filesystem = _of_loop(event.device or f"loop{devno.minor}", view, filesystem)
    return Attribution(filesystem=filesystem, ves=(owner,) if owner else ())


def of_server(view: NodeView, fstype: str | None, server: str | None) -> Attribution:
    """All that a remote server serves to this node, and every VE that depends on it."""
    served = ownership.served_from(view, fstype or "", server)
    ves: dict[VeId, None] = {}
    direct: dict[VeId, None] = {}
    for remote in served:
        direct.update(dict.fromkeys(view.users[remote.devno].ves))
        ves.update(dict.fromkeys(view.affected(remote.devno)))
    points = dict.fromkeys(place.mount.point for remote in served for place in remote.mounts)
    return Attribution(
        filesystem=Filesystem(
            devno=None, device=None, fstype=fstype, server=server, mountpoints=tuple(points)[:16]
        ),
        ves=(*direct, *(ve for ve in ves if ve not in direct)),
        through=tuple(ve for ve in ves if ve not in direct),
    )


def _of_loop(device: str, view: NodeView, filesystem: Filesystem) -> tuple[VeId | None, Filesystem]:
    """Whose image it is attached to, and the filesystem with that image."""
    try:
        status = loop.status(f"/dev/{device}", _PATIENCE_S)
    except OSError:
        return None, filesystem
    inode = (status.backing_devno, status.backing_inode)
    owner = view.image_owners.get(inode)
    if owner is None:
        return None, filesystem
    key = (str(inode[0]), inode[1])
    return owner, replace(filesystem, image=view.image_paths.get(inode), image_inode=key)
