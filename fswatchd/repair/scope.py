"""What exactly is going to be repaired, and whether it still is what was decided on.

The one place where identity is checked. A repair calls `resolve` once and `Target.still_the_same`
before every phase that could do harm.
"""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.incidents import Filesystem, Incident
from fswatchd.inventory import bases, ownership
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve, VeId
from fswatchd.inventory.paths import inode_key
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import extfs
from fswatchd.repair import tools
from fswatchd.repair.device import DeviceIdentity
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.tools import CLONE, Tools
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

_LOOK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The filesystem, the VE it belongs to, and the image below it.

    `superblock` is None where the volume is not mounted (the VE is stopped). `image` is None for a
    volume on a device; `device` is its path then, `identity` what tells it from others, and
    `logical` what it is to LVM, where it is a volume of that.
    """

    filesystem: Filesystem
    ve: Ve
    superblock: Superblock | None
    image: ImageFile | None
    device: str | None = None
    identity: DeviceIdentity | None = None
    logical: LogicalVolume | None = None

    @property
    def volume(self) -> Volume | None:
        """What can be cloned and exchanged; None for any other device."""
        return self.image or self.logical

    @classmethod
    def stopped(cls, filesystem: Filesystem, ve: Ve, volume: Volume) -> Target:
        """What an earlier run had: a volume that is not mounted now."""
        image = volume if isinstance(volume, ImageFile) else None
        logical = volume if isinstance(volume, LogicalVolume) else None
        return cls(filesystem=filesystem, ve=ve, superblock=None, image=image, logical=logical)


async def resolve(
    context: ActionContext,
    *,
    strategy: str = CLONE,
    any_type: bool = False,
    not_busy: str | None = None,
    unmounted: bool = False,
) -> Target:
    """The target of the incident as the node is now. Raises StepEnded, which names the guard.

    `strategy` is the way by which it is going to be repaired: a filesystem that has no safe repair
    by it is refused here. `any_type` is for what does not repair; a VE that is busy with `not_busy`
    is so for this very purpose. `unmounted` takes an image that is mounted no longer for what it
    was, when its VE was stopped since.
    """
    inventory = context.inventory
    await inventory.refresh()
    _find_after_boot(context)
    incident = context.incident
    superblock = _superblock(incident, inventory, unmounted=unmounted)
    ve = _only_user(incident, inventory, superblock, not_busy)
    _check_format(ve, incident.filesystem, superblock)
    fstype = superblock.fstype if superblock else incident.filesystem.fstype
    if not any_type and (no_way := tools.refusal(fstype, strategy)):
        raise refuse("refused", no_way)
    if shared := await _shared_with(inventory.view, superblock, incident.filesystem.image):
        raise refuse("refused", f"{shared}; {ownership.WHAT_NOW}")
    if superblock is not None and len(superblock.members) > 1:
        raise refuse("refused", f"it has {len(superblock.members)} devices, not one")
    if superblock is None:
        path = incident.filesystem.image
    elif superblock.backing.kind == "loop":
        path = superblock.backing.image
    else:
        device = f"/dev/{superblock.device}"
        return Target(
            filesystem=incident.filesystem,
            ve=ve,
            superblock=superblock,
            image=None,
            device=device,
            identity=DeviceIdentity.of(superblock),
            logical=LogicalVolume.on(superblock.devno),
        )
    known = incident.filesystem.image
    if superblock is not None and known and inode_key(known) != superblock.backing.inode_key:
        # The VE would be started again on whatever has that name now.
        text = f"{known} is another file now than the one below {superblock.device}"
        raise refuse("refused", text)
    if path is None:
        raise refuse("refused", "no path leads to the image: declare it as a volume in ve.d")
    image = image_file(path)
    _check_backing(superblock, image)
    if found := bases.children_of_image(inventory.view, (image.devno, image.inode)):
        raise refuse("refused", _base_of(found))
    return Target(filesystem=incident.filesystem, ve=ve, superblock=superblock, image=image)


def tools_for(filesystem: Filesystem) -> Tools:
    """What checks and repairs this filesystem. Raises StepEnded where nothing does."""
    found = tools.of(filesystem.fstype)
    if found is None:
        what = filesystem.fstype or "an unknown filesystem"
        raise refuse("refused", f"this version cannot repair {what}")
    return found


def image_file(path: str) -> ImageFile:
    """The regular file at `path`, symbolic links resolved. Raises StepEnded.

    Its directory is where clones are made and repaired by their names: who else could put another
    file there would choose what is written as root.
    """
    real = os.path.realpath(path)
    try:
        found = os.lstat(real)
        others = _who_else_names(real)
    except OSError as error:
        raise refuse("refused", f"{path}: {error.strerror}") from None
    if others is not None:
        text = f"{others}: whoever that is could exchange the clone of {real} while it is repaired"
        raise refuse("refused", f"{text}; only root may write there")
    if not stat.S_ISREG(found.st_mode):
        raise refuse("refused", f"{real} is not a regular file")
    if found.st_nlink != 1:
        text = f"{real} has {found.st_nlink} names; exchanging one would leave the others damaged"
        raise refuse("refused", text)
    return ImageFile.at(real)


def _who_else_names(path: str) -> str | None:
    """The directory on the way to a file where others than root can exchange what has a name."""
    above = os.path.dirname(path)
    while True:
        found = os.lstat(above)
        if found.st_uid not in {0, os.geteuid()}:
            return f"{above} belongs to user {found.st_uid}"
        writable = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)
        if writable and not found.st_mode & stat.S_ISVTX:
            return f"{above} can be written by others than root"
        if above == "/":
            return None
        above = os.path.dirname(above)


def require_image(target: Target) -> ImageFile:
    """The target's image; raises StepEnded for a volume on a device."""
    if target.image is None:
        raise _no_clone(f"the volume is on {target.device}, which this version cannot clone")
    return target.image


def require_volume(target: Target) -> Volume:
    """What is cloned and exchanged: image or logical volume. Raises StepEnded where it is neither.

    Also where the kernel would take the clone of a device for the original (btrfs).
    """
    if target.image is None and target.logical is not None:
        fstype = target.superblock.fstype if target.superblock else target.filesystem.fstype
        if any(
            one.shared and _devno(one.device) == target.logical.devno for one in target.ve.volumes
        ):
            text = "is in a volume group in which other nodes make volumes too"
            raise _no_clone(f"{target.logical.path} {text}: its platform says shared")
        if not tools_for(target.filesystem).clones_devices:
            raise _no_clone(f"{target.logical.path} has {fstype}, which is cloned in images only")
        return target.logical
    return require_image(target)


def _no_clone(text: str) -> StepEnded:
    return refuse("refused", f'{text}; use strategy = "offline"')


def mounted(target: Target) -> Superblock:
    """The superblock it is mounted as; raises StepEnded where it is not."""
    if target.superblock is None:
        raise refuse("internal", "the volume is not mounted", Next.OPERATOR)
    return target.superblock


def disk(target: Target) -> Devno:
    """The block device: a btrfs has a number of its own."""
    superblock = mounted(target)
    return superblock.members[0] if superblock.members else superblock.devno


def still_the_same(target: Target, inventory: Inventory) -> str | None:
    """None when the target is what was decided on; otherwise what is different."""
    if target.image is not None and not target.image.is_at(target.image.path):
        return f"{target.image.path} is another file now"
    if target.superblock is None:
        image = target.image
        key = (image.devno, image.inode) if image is not None else None
        found = bases.children_of_image(inventory.view, key) if key is not None else ()
        return _base_of(found) if found else None
    now = inventory.view.superblocks.get(target.superblock.devno)
    if now is None:
        return f"{target.superblock.device} is no longer mounted"
    if now.identity != target.superblock.identity:
        return f"another filesystem is mounted on {target.superblock.device} now"
    users = inventory.view.users[now.devno]
    if children := bases.children(inventory.view, now.devno):
        return _base_of(children)
    others = [*users.foreign, *(ve for ve in users.ves if ve != target.ve.ve_id)]
    others += _dependents(inventory.view, now, target.ve.ve_id)
    if others or users.ves != (target.ve.ve_id,):
        return f"it is used by {', '.join(others) or 'nobody'} now"
    if shared := ownership.shared_with(inventory.view, now.devno):
        return shared
    ve = inventory.view.ves.get(target.ve.ve_id)
    if ve is None or (ve.init_pid, ve.init_started) != (
        target.ve.init_pid,
        target.ve.init_started,
    ):
        return f"{target.ve.ve_id} was restarted or is gone"
    if ve.busy:
        return f"{ve.ve_id} is busy now: {ve.busy}"
    return _volume_of_others(inventory.view, ve, now)


def _find_after_boot(context: ActionContext) -> None:
    """A plan that a boot has cut off goes on where its volume is mounted since, if that is nobody's
    but those it was decided about."""
    incident, view = context.incident, context.inventory.view
    if incident.filesystem.boot is None:
        return
    found = view.successor(incident.filesystem, incident.direct_ves)
    if found is not None and set(view.users[found.devno].ves) <= set(incident.direct_ves):
        context.filesystem_is_now(found)


def _superblock(incident: Incident, inventory: Inventory, *, unmounted: bool) -> Superblock | None:
    wanted = incident.filesystem
    if wanted.devno is None:
        if wanted.image is None:
            raise refuse("refused", "the incident names no device")
        return None
    found = inventory.view.superblocks.get(wanted.devno)
    another = found is None or inventory.view.describe(found).key != wanted.key
    if another and unmounted and wanted.image is not None:
        return None  # the number may be somebody else's by now
    if found is None:
        text = f"{wanted.device} is no longer mounted: the VE was stopped, or has unmounted it"
        raise refuse("cancelled", text, Next.CANCELLED)
    # An XFS that is shut down tells a daemon that starts then no UUID: its disk's number does.
    tells = found.uuid is not None or not found.disk_sequence
    other = wanted.uuid and tells and found.uuid != wanted.uuid
    if inventory.view.describe(found).key != wanted.key or other:
        text = f"{wanted.device} is another filesystem now than the one of this incident"
        raise refuse("cancelled", text, Next.CANCELLED)
    return found


def _only_user(
    incident: Incident,
    inventory: Inventory,
    superblock: Superblock | None,
    not_busy: str | None,
) -> Ve:
    view = inventory.view
    ves: tuple[str, ...] = incident.ves
    foreign: tuple[str, ...] = ()
    if superblock is not None:
        users = view.users[superblock.devno]
        ves, foreign = users.ves, users.foreign
    elif (image := incident.filesystem.image) is not None:
        foreign = view.own_image(image)
    if superblock is not None and (found := bases.children(view, superblock.devno)):
        raise refuse("refused", _base_of(found))
    if foreign:
        # Whoever has come since it was decided may go again.
        passing = superblock is not None and superblock.devno not in view.own
        text = f"the filesystem is also used by {', '.join(foreign)}"
        if passing:
            raise refuse("cancelled", text, Next.CANCELLED)
        raise refuse("refused", text)
    if len(ves) != 1:
        names = ", ".join(ves) or "no VE"
        raise refuse("refused", f"exactly one VE must use the filesystem, not {names}")
    if superblock is not None and (others := _dependents(view, superblock, ves[0])):
        text = f"it holds what {', '.join(others)} depends on"
        raise refuse("refused", text)
    ve = view.ves.get(VeId(ves[0]))
    if ve is None:
        raise refuse("cancelled", f"{ves[0]} is gone", Next.CANCELLED)
    if ve.unrepairable:
        raise refuse("refused", f"{ve.ve_id} is {ve.unrepairable}")
    if ve.busy and ve.busy != not_busy:
        raise refuse("cancelled", f"{ve.ve_id} is busy: {ve.busy}", Next.CANCELLED)
    if held := _volume_of_others(view, ve, superblock):
        raise refuse("refused", held)
    return ve


def _volume_of_others(view: NodeView, ve: Ve, superblock: Superblock | None) -> str | None:
    """Why the VE could not be started again once it is stopped; None where nothing says so.

    A volume of its own that somebody else has mounted as well stays mounted then, and the start
    would mount the image a second time beside it.
    """
    for other in view.superblocks_of(ve.ve_id):
        if other is superblock or view.owner_of_volume(other) != ve.ve_id:
            continue
        users = view.users[other.devno]
        others = [*users.foreign, *(one for one in users.ves if one != ve.ve_id)]
        if others and other.backing.kind == "loop":
            return (
                f"{other.device}, another volume of {ve.ve_id}, is also used by "
                f"{', '.join(others)}: a start would mount its image twice"
            )
    return None


async def _shared_with(
    view: NodeView, superblock: Superblock | None, image: str | None
) -> str | None:
    """See `ownership`; and what is on the device or image itself is read again."""

    device = f"/dev/{superblock.device}" if superblock else None
    if superblock is not None:
        shared = ownership.shared_with(view, superblock.devno)
    else:
        shared = ownership.shared_image(view, image or "/")
    if shared is not None or (path := device or image) is None:
        return shared
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            if superblock is None:
                real, host = await asyncio.to_thread(_place, path)
                if shared := ownership.shared_image(view, real, host):
                    return shared
            if await asyncio.to_thread(extfs.has_mmp, path):
                return f"multiple mount protection is set on {path} (mmp, ext4(5))"
    except TimeoutError:
        return f"{path} does not answer"
    except OSError as error:
        return f"{path} cannot be read, so whose else it is cannot be told: {error.strerror}"
    return None


def _place(path: str) -> tuple[str, Devno]:
    return os.path.realpath(path), Devno.of(os.stat(path).st_dev)


def _dependents(view: NodeView, superblock: Superblock, ve_id: str) -> list[str]:
    """Who else than the VE depends on the filesystem through what rests on it."""
    through = view.dependents(superblock.devno)
    return [*through.foreign, *(ve for ve in through.ves if ve != ve_id)]


def _base_of(children: tuple[str, ...]) -> str:
    return f"it is the base of {printable(', '.join(children))}"


def _check_format(ve: Ve, filesystem: Filesystem, superblock: Superblock | None) -> None:
    """Refuse what is a filesystem only through its platform's own driver.

    Its device goes when the VE stops, and what is in the image is not for e2fsck to read.
    """
    for volume in ve.volumes:
        if superblock is not None:
            found = _devno(volume.device) == superblock.devno
        else:
            found = volume.image is not None and volume.image == filesystem.image
        if found and volume.format != "raw":
            text = f"{volume.image or volume.device} is in the format {volume.format}"
            raise refuse("refused", f"{text}, which this version cannot repair")


def _devno(device: str | None) -> Devno | None:
    try:
        return Devno.of(os.stat(device).st_rdev) if device is not None else None
    except OSError:
        return None


def _check_backing(superblock: Superblock | None, image: ImageFile) -> None:
    if superblock is None:
        if holder := image.held_by():
            raise refuse("refused", holder)
        return
    loops = image.loops()
    if superblock.backing.inode_key != (image.devno, image.inode):
        raise refuse("refused", f"{image.path} is not the file below {superblock.device}")
    if superblock.backing.offset:
        raise refuse("refused", f"{superblock.device} starts inside its image (partitions?)")
    if loops != [f"/dev/{superblock.device}"]:
        raise refuse("refused", f"{image.path} is attached more than once: {', '.join(loops)}")
