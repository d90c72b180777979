"""Reads the whole node into a `NodeView`: mounts, VEs, devices, images, and who owns what.

Everything here blocks on /proc and /sys, and on nothing that a VE or a server could hold up; it
runs in a thread. What cannot change is remembered from one look to the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.inventory import ownership, reach, serving
from fswatchd.inventory.images import ImageReader
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.owners import Owners, Unclaimed
from fswatchd.inventory.paths import Key, PatientPaths
from fswatchd.inventory.places import OVERLAY, Places
from fswatchd.inventory.scan import MountScanner, MountTable
from fswatchd.inventory.serving import FuseServers
from fswatchd.inventory.stack import Images, StackReader
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import mountinfo, proc, swap

NamespaceSeen = Callable[[NamespaceKey, int], None]


class NodeReader:
    """One per inventory. `own_paths` are what the daemon itself keeps its state in."""

    def __init__(
        self,
        scanner: MountScanner,
        on_namespace: NamespaceSeen,
        unclaimed: Unclaimed | None = None,
        own_paths: Iterable[str] = (),
    ) -> None:
        self.scanner = scanner
        self._on_namespace = on_namespace
        self._own_paths = tuple(own_paths)
        self._owners = Owners(unclaimed)
        self._paths = PatientPaths()
        self._fuse_servers = FuseServers()
        self._stack = StackReader(self._paths.key)
        self._places = Places()
        self._images = ImageReader(self._places)
        self._declared: Images = {}

    def forget(self) -> None:
        """Read everything anew next time."""
        self.scanner.forget()
        self._stack.forget()
        self._owners.forget()
        self._places.forget()
        self._fuse_servers.forget()

    def devices(self, wanted: Iterable[Devno]) -> dict[Devno, BlockDevice]:
        """These devices and all that they rest on, named as `read` names them: a btrfs whose image
        is another one at the next look would be taken for another filesystem (`Filesystem.key`).

        Blocks, as `read` does, and never beside it.
        """
        return self._devices(wanted, self._declared)

    def unread(self) -> str:
        """See MountScanner.unread."""
        return self.scanner.unread()

    def process_in(self, namespace: NamespaceKey) -> int | None:
        """See Owners.process_in."""
        return self._owners.process_in(namespace)

    def read(self, ves: dict[VeId, Ve], before: NodeView) -> NodeView:
        """The node with these VEs; what is known of the same filesystem from `before` is kept.

        Blocks: called in a thread, never twice at once.
        """
        table = self.scanner.scan(self._on_namespace)
        device_owners = _device_owners(ves)
        node_namespace = NamespaceKey(proc.mount_namespace_inode("self") or 0)
        owners, ves = self._owners.find(table, ves, node_namespace)
        self._places.begin(place.mount for place in table.get(node_namespace, ()))
        everything = _by_device(table, self._unreached_mounts(table, ves))
        remote = serving.mounted(everything, ves)
        served = {devno: found.mounts for devno, found in remote.items()}
        self._paths.served_at(ownership.node_points(served, node_namespace))
        images, formats = _images(ves, self._paths.key)
        self._declared = images
        mounted = {d: found for d, found in everything.items() if d not in remote}
        layered = {d: found for d, found in mounted.items() if found[0].mount.fstype == OVERLAY}
        places = {d: found for d, found in mounted.items() if d not in layered}
        own = ownership.node_own(mounted, node_namespace, self._needed())
        known = before.superblocks
        members = [member for devno in places if devno in known for member in known[devno].members]
        devices = self._devices([*places, *members, *device_owners, *own], images)
        self._stack.keep_only(devices)
        paths = _paths(images, devices)
        # What lies on a server is not opened: it may not answer.
        local = {key: path for key, path in paths.items() if key[0] not in remote}
        chains = self._images.chains(local, formats)
        paths |= chains.paths
        hosts: set[Devno | None] = {host for host, _ in paths}
        hosts |= {device.backing.image_devno for device in devices.values()}
        remote = self._fuse_servers.completed(
            remote, serving.used_by_others(remote, hosts, owners), serving.ve_of_process(ves)
        )
        view = NodeView(
            superblocks=_superblocks(places, devices, known),
            ves=ves,
            owners=owners,
            node_namespace=node_namespace,
            image_owners={key: ve_id for key, (ve_id, _) in images.items()},
            device_owners=device_owners,
            devices=devices,
            overlays=self._overlays(layered, ves, owners, node_namespace),
            hosts=self._places.hosts(paths, everything),
            image_bases=chains.bases,
            image_paths=paths,
            remote=remote,
            own=own,
        )
        view.work_out_dependents()  # here, not when an event waits for them
        return view

    def _devices(self, wanted: Iterable[Devno], images: Images) -> dict[Devno, BlockDevice]:
        """With the files below nbd and ploop devices, and the devices these lie on."""
        devices = self._stack.read(wanted, images)
        for device in [one for one in devices.values() if one.kind in {"nbd", "ploop"}]:
            backing = self._images.served(device)
            devices[device.devno] = replace(device, backing=backing)
            if backing.image_devno is not None and backing.image_devno not in devices:
                devices.update(self._stack.read([backing.image_devno], images))
        return devices

    def _overlays(
        self,
        layered: dict[Devno, list[NamespaceMount]],
        ves: dict[VeId, Ve],
        owners: dict[NamespaceKey, str],
        node: NamespaceKey,
    ) -> dict[Devno, Superblock]:
        def pid_in(namespace: NamespaceKey) -> int | None:
            ve = ves.get(VeId(owners.get(namespace, "")))
            return ve.init_pid if ve is not None else self._owners.process_in(namespace)

        found: dict[Devno, Superblock] = {}
        for devno, mounted in layered.items():
            overlay = Superblock(
                devno=devno,
                fstype=OVERLAY,
                device=OVERLAY,
                disk_sequence=None,
                mounts=tuple(mounted),
                backing=Backing(kind=OVERLAY),
            )
            members, bases = self._places.rests_on(overlay, node, pid_in)
            found[devno] = replace(overlay, members=members, bases=bases)
        self._places.keep_only(found)
        return found

    def _needed(self) -> list[tuple[str, Devno | None, str]]:
        """What the node or this daemon has on a filesystem or device, and cannot do without."""
        needed = [
            (path, devno, f"the node, which swaps to {printable(path)}")
            for path, devno in swap.areas()
        ]
        for path in self._own_paths:
            words = f"fswatchd itself, which keeps its state in {printable(path)}"
            devno = None
            with suppress(OSError):
                devno = Devno.of(os.stat(path).st_dev)
            needed.append((os.path.realpath(path), devno, words))
        return needed

    def _unreached_mounts(
        self, table: MountTable, ves: dict[VeId, Ve]
    ) -> dict[NamespaceKey, frozenset[int]]:
        """By namespace, the mounts in it that its VE cannot reach (see `reach`).

        Rare, so that only where there are any the VE's first process is looked at.
        """
        found = {}
        for ve in ves.values():
            key, pid = ve.namespace, ve.init_pid
            covered = self.scanner.covered(key) if key is not None else frozenset()
            if key is None or pid is None or not covered:
                continue
            with suppress(OSError):
                seen = frozenset(mount.mount_id for mount in mountinfo.read(pid))
                if seen and proc.mount_namespace_inode(pid) == key:
                    mounts = (place.mount for place in table.get(key, ()))
                    found[key] = reach.unreached(mounts, covered, seen)
        return found


def _superblocks(
    places: dict[Devno, list[NamespaceMount]],
    devices: dict[Devno, BlockDevice],
    before: Mapping[Devno, Superblock],
) -> dict[Devno, Superblock]:
    superblocks: dict[Devno, Superblock] = {}
    for devno, mounted in places.items():
        device = devices.get(devno)
        name = device.name if device else mounted[0].mount.source
        sequence = device.disk_sequence if device else None
        mounts = tuple(mounted)
        backing = device.backing if device else Backing(kind="device")
        known = before.get(devno)
        if known is not None:
            seen = (known.device, known.disk_sequence, known.backing, known.mounts)
            if seen == (name, sequence, backing, mounts):
                superblocks[devno] = known  # so that the same is seen to be the same at no cost
                continue
        superblock = Superblock(
            devno=devno,
            fstype=mounted[0].mount.fstype,
            device=name,
            disk_sequence=sequence,
            mounts=mounts,
            backing=backing,
        )
        if known is not None and same_superblock(known, superblock):
            superblock = replace(
                superblock,
                uuid=known.uuid,
                fsid=known.fsid,
                members=known.members,
                mmp=known.mmp,
            )
            superblock = on_its_device(superblock, devices)
            if superblock == known:
                superblock = known  # a btrfs, whose mount names its device in other words
        superblocks[devno] = superblock
    return superblocks


def on_its_device(superblock: Superblock, devices: Mapping[Devno, BlockDevice]) -> Superblock:
    """A btrfs on one device with the name and the image of that, as other filesystems have them."""
    if len(superblock.members) != 1 or superblock.fstype != "btrfs":
        return superblock
    device = devices.get(superblock.members[0])
    if device is None:
        return superblock
    return replace(superblock, device=device.name, backing=device.backing)


def _by_device(
    table: MountTable, unreached: dict[NamespaceKey, frozenset[int]]
) -> dict[Devno, list[NamespaceMount]]:
    places: dict[Devno, list[NamespaceMount]] = {}
    hidden: list[NamespaceMount] = []
    for namespace, found in table.items():
        out_of_reach = unreached.get(namespace, frozenset())
        for place in found:
            if place.mount.mount_id in out_of_reach:
                hidden.append(replace(place, unreached=True))
            else:
                places.setdefault(place.mount.devno, []).append(place)
    for place in hidden:
        others = places.setdefault(place.mount.devno, [])
        if not any(reach.goes_with(place.mount, other.mount) for other in others):
            others.append(place)
    return places


def same_superblock(old: Superblock | None, new: Superblock | None) -> bool:
    """Whether two looks at a device number saw the same superblock.

    The kernel gives superblocks no id. They are the same where the disk is the same and at least
    one mount is; a filesystem that was unmounted and mounted between two looks has new mounts.
    """
    if old is None or new is None:
        return False
    if old is new:
        return True
    if old.disk_sequence != new.disk_sequence or old.fstype != new.fstype:
        return False
    before = {(place.namespace, place.mount.mount_id) for place in old.mounts}
    return any((place.namespace, place.mount.mount_id) in before for place in new.mounts)


def _images(
    ves: dict[VeId, Ve], key_of: Callable[[str], Key | None]
) -> tuple[Images, dict[Key, str]]:
    """The images that VEs declare, and the formats of those that something has to open first."""
    found: dict[Key, tuple[VeId, str]] = {}
    formats: dict[Key, str] = {}
    for ve in ves.values():
        for volume in ve.volumes:
            key = key_of(volume.image) if volume.image else None
            if key is not None and volume.image:
                found[key] = (ve.ve_id, volume.image)
                if volume.format != "raw":
                    formats[key] = volume.format
    return found, formats


def _paths(images: Images, devices: dict[Devno, BlockDevice]) -> dict[tuple[Devno, int], str]:
    """A path of every image that is known."""
    found = {key: path for key, (_, path) in images.items()}
    for device in devices.values():
        key = device.backing.inode_key
        if key is not None and device.backing.image is not None:
            found.setdefault(key, device.backing.image)
    return found


def _device_owners(ves: dict[VeId, Ve]) -> dict[Devno, VeId]:
    owners = {}
    for ve in ves.values():
        for volume in ve.volumes:
            if volume.device:
                with suppress(OSError):
                    owners[Devno.of(os.stat(volume.device).st_rdev)] = ve.ve_id
    return owners
