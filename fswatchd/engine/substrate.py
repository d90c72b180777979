"""How everything beneath an incident's filesystem is at this moment, for the policy to judge.

Facts only: room by statfs on a descriptor of the filesystem, sysfs of the devices, what open
incidents say of each object. Who is to blame is decided in `blame`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from errno import EIO, ENODEV, ENOSPC, EROFS

from fswatchd import process, views
from fswatchd.book import IncidentBook
from fswatchd.cause import SUSPENDED, Layer, culprit, fault_of_device, is_full, unwell
from fswatchd.devno import Devno
from fswatchd.events import DEVICE_CLASSES, Domain, EventClass, VeState, printable
from fswatchd.helpers.client import HelperError
from fswatchd.incidents import Incident
from fswatchd.inventory import ownership
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import BlockDevice, RemoteFilesystem, Superblock
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block, devmapper
from fswatchd.kernel.patience import Patience
from fswatchd.sources.state import StateSource
from fswatchd.units import show_size

_STATFS_TIMEOUT_S = 3.0
_patience = Patience()
_POOL_KNOWN_S = 2.0
_PROJECT_QUOTA = frozenset({"ext4", "xfs", "f2fs"})
_NONE = Devno(0, 0)
_THIN_POOL = "dm-thin"  # as the kernel's lines about it are read: rules find both by the same name
_MEASURED_S = 1.0
# What `device/state` says of a disk that does its work (drivers/scsi/scsi_sysfs.c, nvme/host).
_RUNNING = frozenset({"running", "live", ""})
# What a request to a device in such a state gets.
_ERRNO = {
    EventClass.IO_ERROR: EIO,
    EventClass.DEVICE_LOST: ENODEV,
    EventClass.SPACE: ENOSPC,
    EventClass.READONLY: EROFS,
}


class Substrate:
    """Looks at the layers beneath an incident."""

    def __init__(self, inventory: Inventory, state: StateSource, book: IncidentBook) -> None:
        self._inventory = inventory
        self._state = state
        self._book = book
        self._pools: dict[Devno, tuple[float, devmapper.ThinPool | None]] = {}
        self._paths: dict[Devno, tuple[float, tuple[int, int]]] = {}
        self._measures: dict[object, tuple[float, asyncio.Task[Layer]]] = {}

    async def beneath(self, incident: Incident) -> tuple[Layer, ...]:
        """The filesystem's own device and all that lies beneath, nearest first.

        Nothing for an incident of a bare device: that is the culprit itself.
        """
        view = self._inventory.view
        known = incident.filesystem
        superblock = view.attached(known)
        if known.server is not None:
            served = ownership.served_from(view, known.fstype or "", known.server)
            return tuple(layer for remote in served for layer in _served_by(view, remote))
        if superblock is None:
            return ()
        layers: list[Layer] = []
        of_device: dict[int, BlockDevice] = {}
        only_read = _only_read(view, superblock.devno)
        for number in (superblock.devno, *view.beneath(superblock.devno)):
            ves = view.affected(number)
            host = view.superblocks.get(number)
            if host is not None and host is not superblock:
                layers.append(replace(await self._filesystem(host), ves=ves))
            if (remote := view.remote.get(number)) is not None:
                layers.append(replace(self._remote(remote), ves=ves))
                layers += _served_by(view, remote)
            device = view.devices.get(number)
            if device is not None:
                layer = self._with_incidents(device, await self._device(device))
                readonly = layer.readonly and number not in only_read
                of_device[len(layers)] = device
                layers.append(replace(layer, ves=ves, readonly=readonly))
                on_server = device.backing.image_devno in view.remote
                if not on_server and (quota := await self._quota(device)) is not None:
                    layers.append(quota)
        place = culprit(layers)
        if place in of_device:
            layers[place] = self._told(superblock, of_device[place], layers[place])
        return tuple(layers)

    async def device_fault(self, device: BlockDevice) -> str | None:
        """What is wrong with a device by what can be read of it, in words; None where nothing is.

        Errors that it has reported are none of that.
        """
        layer = await self._device(device)
        if fault_of_device(layer) is not None:
            return unwell(layer)
        # Nothing waits for a path while there is another.
        return f"{layer.failed_paths} of its paths have failed" if layer.failed_paths else None

    async def _device(self, device: BlockDevice) -> Layer:
        on_server = device.backing.image_devno in self._inventory.view.remote
        layer = await asyncio.to_thread(_device, device, on_server=on_server)
        return await self._with_paths(device, await self._as_pool(device, layer))

    def _told(self, superblock: Superblock, device: BlockDevice, layer: Layer) -> Layer:
        """The layer with an incident of its own, where several VEs rest on what is not well.

        No event tells of an image that was cut short or a pool that is full, or only one for each
        filesystem above: the first that suffers has it told, and all are parts of that. What a
        single VE rests on, or a filesystem alone, is that incident itself.
        """
        klass = fault_of_device(layer)
        known = layer.full_incident if klass is EventClass.SPACE else layer.incident
        if klass is None or self._is_confirmed(known) or len(layer.ves) < 2:
            return layer
        view = self._inventory.view
        if view.superblock_on(device.devno) is superblock:
            return layer
        if klass is EventClass.READONLY and not _is_written(view, device.devno):
            return layer
        _, pool = self._pools.get(device.devno, (0.0, None))
        target = _THIN_POOL if pool is not None else None
        self._state.report_device(device, klass, unwell(layer) or "", _ERRNO.get(klass), target)
        return self._with_incidents(device, layer)

    def _is_confirmed(self, incident_id: str | None) -> bool:
        """Whether that incident rests on more than what a log line says."""
        incident = self._book.get(incident_id) if incident_id is not None else None
        return incident is not None and incident.confirmed

    def _with_incidents(self, device: BlockDevice, layer: Layer) -> Layer:
        """The layer with what incidents say of it, or of the filesystem that lies on it."""
        view = self._inventory.view
        above = view.superblock_on(device.devno)
        key = view.describe(above).key if above else f"{device.devno}/{device.disk_sequence or 0}"
        about = self._book.find_key(key, Domain.DAMAGE)
        full = self._book.find_key(key, Domain.SPACE)
        return replace(
            layer,
            since_ns=about.device_since_ns if about else None,
            errors=about.device_errors if about else 0,
            incident=about.incident_id if about else None,
            full_incident=full.incident_id if full else None,
        )

    def _remote(self, remote: RemoteFilesystem) -> Layer:
        """A served filesystem is never asked: who asks a server that is lost waits for it."""
        view = self._inventory.view
        lost = [
            found
            for found in self._book.open_incidents()
            if (server := found.filesystem.server) is not None
            and remote in ownership.served_from(view, found.filesystem.fstype or "", server)
        ]
        return Layer(
            kind="filesystem",
            name=ownership.name(view, remote),
            since_ns=lost[0].opened_ns if lost else None,
            incident=lost[0].incident_id if lost else None,
            answers=not lost,
        )

    async def has_room(self, superblock: Superblock) -> bool | None:
        """Whether a write to the filesystem finds room; None where nobody can tell.

        Asked anew, and from then on what all others hear: who heard of a moment before would tell
        that it is full once more, as soon as the incident of that is over.
        """
        self._measures.pop(superblock.identity, None)
        layer = await self._measured(superblock)
        return None if layer.free_bytes is None else not is_full(layer)

    async def _filesystem(self, superblock: Superblock) -> Layer:
        """A host filesystem as a layer.

        That it is full, or has stopped, is told as an event of its own where nobody has told it
        yet: one incident for it, and none for each that suffers from it.
        """
        layer = await self._measured(superblock)
        view = self._inventory.view
        filesystem = view.describe(superblock)
        if is_full(layer) and self._book.find(filesystem, Domain.SPACE) is None:
            left = "no inodes" if layer.free_inodes == 0 else show_size(layer.free_bytes or 0)
            self._state.report(superblock, EventClass.SPACE, f"it is full: {left} left", ENOSPC)
        full = self._book.find(filesystem, Domain.SPACE)
        known = self._book.find(filesystem, Domain.DAMAGE)
        if known is not None and (known.confirmed or known.classes & DEVICE_CLASSES):
            own = known.klass_of_its_own
            damaged = f"{own.value} (incident {known.incident_id})"
            layer = replace(layer, damaged=damaged, since_ns=known.opened_ns)
        return replace(
            layer,
            incident=known.incident_id if known else None,
            full_incident=full.incident_id if full else None,
        )

    async def _measured(self, superblock: Superblock) -> Layer:
        """Its room and health, of a moment ago at most: when a host fails all that rests on it is
        decided about at once, and asking is not free."""
        now = time.monotonic()
        self._measures = {
            key: known for key, known in self._measures.items() if now - known[0] < _MEASURED_S
        }
        key = superblock.identity
        if key not in self._measures:
            task = asyncio.get_running_loop().create_task(self._measure(superblock))
            self._measures[key] = (now, task)
        return await asyncio.shield(self._measures[key][1])

    async def _measure(self, superblock: Superblock) -> Layer:
        self._state.check(superblock.devno)
        room, answers = await self._room(superblock)
        name = views.filesystem_name(self._inventory.view, superblock)
        health = self._state.health(superblock.devno)
        return replace(_with_room(_named(name), room), health=health, answers=answers)

    async def _room(self, superblock: Superblock) -> tuple[os.statvfs_result | None, bool]:
        """What statfs says, None where it cannot be asked; and whether it answers."""
        try:
            async with self._inventory.opened(superblock) as fd:
                name = f"room of {superblock.devno}"
                return await _patience.answer(
                    name, lambda: os.fstatvfs(fd), _STATFS_TIMEOUT_S
                ), True
        except (TimeoutError, HelperError):
            return None, False
        except OSError:
            # No mount of it can be reached: its health tells, and the image is held by loop.
            return None, True

    async def _quota(self, device: BlockDevice) -> Layer | None:
        """The room that a project quota leaves to the directory of a device's image.

        ext4 and XFS answer statfs(2) for such a directory with its limit in the place of the size.
        """
        image, devno = device.backing.image, device.backing.image_devno
        host = self._inventory.view.superblocks.get(self._inventory.view.host(devno or _NONE))
        if image is None or host is None or host.fstype not in _PROJECT_QUOTA:
            return None
        directory = os.path.dirname(image)
        try:
            async with self._inventory.opened(host) as fd:
                whole, room = await _patience.answer(
                    f"quota of {directory}",
                    lambda: (os.fstatvfs(fd), os.statvfs(directory)),
                    _STATFS_TIMEOUT_S,
                )
        except (TimeoutError, HelperError, OSError):
            return None  # the layer of the host says what is wrong with it
        if room.f_blocks * room.f_frsize >= whole.f_blocks * whole.f_frsize:
            return None
        return Layer(
            kind="filesystem",
            name=f"the quota of {directory}",
            free_bytes=room.f_bavail * room.f_frsize,
            total_bytes=room.f_blocks * room.f_frsize,
            free_inodes=room.f_favail if room.f_files else None,
        )

    async def _as_pool(self, device: BlockDevice, layer: Layer) -> Layer:
        """With what dmsetup says of a thin pool: sysfs says nothing of its room."""
        if not await asyncio.to_thread(_may_be_pool, device):
            return layer
        now, known = time.monotonic(), self._pools.get(device.devno)
        if known is None or now - known[0] > _POOL_KNOWN_S:
            known = self._pools[device.devno] = (now, await _pool_of(device.devno))
        pool = known[1]
        if pool is None:
            return layer
        return replace(
            layer,
            lacks=pool.lacks,
            state=layer.state or pool.broken,
            readonly=layer.readonly or pool.readonly,
        )

    async def _with_paths(self, device: BlockDevice, layer: Layer) -> Layer:
        """With the paths that a multipath device has lost, which sysfs does not tell."""
        if not await asyncio.to_thread(is_multipath, device):
            return layer
        now, known = time.monotonic(), self._paths.get(device.devno)
        if known is None or now - known[0] > _POOL_KNOWN_S:
            found = devmapper.paths(await _status_of(device.devno))
            known = self._paths[device.devno] = (now, found)
        used, failed = known[1]
        state = layer.state or ("without a path that works" if failed and not used else "")
        return replace(layer, failed_paths=failed, state=state)


def _named(name: str) -> Layer:
    return Layer(kind="filesystem", name=name)


def _with_room(layer: Layer, room: os.statvfs_result | None) -> Layer:
    if room is None:
        return layer
    return replace(
        layer,
        free_bytes=room.f_bavail * room.f_frsize,
        total_bytes=room.f_blocks * room.f_frsize,
        free_inodes=room.f_favail if room.f_files else None,
    )


async def _pool_of(devno: Devno) -> devmapper.ThinPool | None:
    return devmapper.thin_pool(await _status_of(devno))


async def _status_of(devno: Devno) -> str:
    """What dmsetup says, empty where it says nothing."""
    # Without --noflush the pool would write its metadata first, and a full one may not.
    numbers = ("-j", str(devno.major), "-m", str(devno.minor))
    try:
        done = await process.run(
            ("dmsetup", "status", "--noflush", *numbers), timeout_s=_STATFS_TIMEOUT_S
        )
    except process.ProcessError:
        return ""
    return done.output if done.succeeded else ""


def is_multipath(device: BlockDevice) -> bool:
    """Whether it is one device by several paths (dm-multipath)."""
    owner = block.attribute(device.devno, "dm/uuid") if device.kind == "dm" else None
    return (owner or "").startswith("mpath-")


def _may_be_pool(device: BlockDevice) -> bool:
    if device.kind != "dm":
        return False
    owner = block.attribute(device.devno, "dm/uuid") or ""
    return owner.endswith("-tpool") or not owner.startswith(("LVM-", "CRYPT-", "mpath-", "part"))


def _served_by(view: NodeView, remote: RemoteFilesystem) -> list[Layer]:
    """The VE that serves it, where that is one of this node's."""
    ve = view.ves.get(remote.served_by) if remote.served_by is not None else None
    if ve is None:
        return []
    what = f"and serves {printable(remote.source)}"
    state = "" if ve.state is VeState.RUNNING else f"{ve.state.value}, {what}"
    return [Layer(kind="ve", name=ve.ve_id, state=state)]


def _only_read(view: NodeView, devno: Devno) -> frozenset[Devno]:
    """What beneath it is never written, because others were made of it: it may be read-only."""
    devices = (view.devices.get(one) for one in (devno, *view.beneath(devno)))
    bases = {base for device in devices if device is not None for base in device.bases}
    return frozenset({*bases, *(lower for base in bases for lower in view.beneath(base))})


def _is_written(view: NodeView, devno: Devno) -> bool:
    """Whether a filesystem that rests on the device is mounted to be written."""
    above = (one for one in view.superblocks.values() if devno in view.beneath(one.devno))
    return any("ro" not in one.options for one in above)


def _device(device: BlockDevice, *, on_server: bool) -> Layer:
    missing = block.attribute(device.devno, "md/degraded") or "0"
    state = block.attribute(device.devno, "device/state") or ""
    if block.attribute(device.devno, "dm/suspended") == "1":
        state = SUSPENDED
    return Layer(
        kind="device",
        name=f"/dev/{device.name}",
        readonly=block.attribute(device.devno, "ro") == "1",
        missing=int(missing) if missing.isdecimal() else 0,
        state="" if state in _RUNNING else state,
        short_by=0 if on_server else _short_by(device),  # its server may not answer
    )


def _short_by(device: BlockDevice) -> int:
    """How many bytes a loop device reaches beyond the end of its image."""
    backing = device.backing
    if backing.image is None or backing.inode_key is None:
        return 0
    return block.image_short_by(device.devno, backing.image, backing.inode_key, backing.offset)
