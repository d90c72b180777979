"""The node at one moment, and the questions that its graph answers. Pure.

What it is made of stands in `model`; `reader` makes one.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from fswatchd.devno import Devno
from fswatchd.events import names_filesystem
from fswatchd.incidents import Filesystem
from fswatchd.inventory.model import (
    BlockDevice,
    ImageKey,
    NamespaceKey,
    NamespaceMount,
    RemoteFilesystem,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.reach import goes_with
from fswatchd.kernel.mounts import Mount


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """Who uses a superblock: VEs, and anybody else by description."""

    ves: tuple[VeId, ...] = ()
    foreign: tuple[str, ...] = ()


_NOBODY = Users()
_NO_NAMESPACE = NamespaceKey(0)
# Deeper than anybody builds: an image in an image in an image counts nine.
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """The node at one moment.

    `owners` says whose each mount namespace is: a VE's id, or words for anybody else.
    `image_owners` and `device_owners` say which VE declares an image or device as its volume.
    `devices` are the block devices of all superblocks, and all that these rest on. `overlays` are
    the overlays mounted anywhere, by their device number. `hosts` leads from the `st_dev` of an
    image to the superblock that holds it, where that has another number (btrfs). `image_bases`
    leads from an image to the one beneath it (a qcow2 backing file), `image_paths` to a path.
    `remote` are the filesystems that others serve. `own` says of a filesystem or device that the
    node itself cannot do without it, and what for: whatever is declared of it, it is no VE's alone.
    """

    superblocks: Mapping[Devno, Superblock] = field(default_factory=dict)
    ves: Mapping[VeId, Ve] = field(default_factory=dict)
    owners: Mapping[NamespaceKey, str] = field(default_factory=dict)
    node_namespace: NamespaceKey = _NO_NAMESPACE
    image_owners: Mapping[tuple[Devno, int], VeId] = field(default_factory=dict)
    device_owners: Mapping[Devno, VeId] = field(default_factory=dict)
    devices: Mapping[Devno, BlockDevice] = field(default_factory=dict)
    overlays: Mapping[Devno, Superblock] = field(default_factory=dict)
    hosts: Mapping[Devno, Devno] = field(default_factory=dict)
    image_bases: Mapping[ImageKey, ImageKey] = field(default_factory=dict)
    image_paths: Mapping[ImageKey, str] = field(default_factory=dict)
    remote: Mapping[Devno, RemoteFilesystem] = field(default_factory=dict)
    own: Mapping[Devno, str] = field(default_factory=dict)
    users: Mapping[Devno, Users] = field(init=False)
    _of_ve: Mapping[VeId, list[Superblock]] = field(init=False, repr=False)
    _described: dict[Devno, Filesystem] = field(init=False, repr=False, default_factory=dict)
    _dependents: dict[Devno, Users] = field(init=False, repr=False, default_factory=dict)
    _beneath: dict[Devno, tuple[Devno, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        mounted = {**self.superblocks, **self.overlays}
        users = {devno: self._users(found) for devno, found in mounted.items()}
        users |= {devno: self._mounted_by(found.mounts) for devno, found in self.remote.items()}
        of_ve: dict[VeId, list[Superblock]] = {}
        for devno, found in self.superblocks.items():
            for ve_id in users[devno].ves:
                of_ve.setdefault(ve_id, []).append(found)
        object.__setattr__(self, "users", users)
        object.__setattr__(self, "_of_ve", of_ve)

    def identified(self, superblock: Superblock, devices: Mapping[Devno, BlockDevice]) -> NodeView:
        """This view with what has been found out about one of its filesystems.

        Who uses it stays the same, so that a thousand of them do not cost a thousand looks at all.
        """
        view = copy.copy(self)
        owned = {
            ve_id: [superblock if s.devno == superblock.devno else s for s in self._of_ve[ve_id]]
            for ve_id in self.users[superblock.devno].ves
        }
        changed = {
            "superblocks": {**self.superblocks, superblock.devno: superblock},
            "devices": {**self.devices, **devices} if devices else self.devices,
            "_of_ve": {**self._of_ve, **owned},
            "_described": {},
        }
        before = self.superblocks.get(superblock.devno)
        if before is None or devices or before.members != superblock.members:
            # Else all rests on what it rested on: nobody wants to wait for that to be worked out.
            changed |= {"_dependents": {}, "_beneath": {}}
        for name, value in changed.items():
            object.__setattr__(view, name, value)
        return view

    def superblock_on(self, devno: Devno) -> Superblock | None:
        """The filesystem with this number, or with this block device as a member."""
        found = self.superblocks.get(devno)
        if found is None:
            found = next((s for s in self.superblocks.values() if devno in s.members), None)
        return found

    def mounted(self, devno: Devno) -> Superblock | None:
        """The filesystem or overlay with this number."""
        return self.superblocks.get(devno) or self.overlays.get(devno)

    def host(self, image_devno: Devno) -> Devno:
        """The number of the superblock that holds a file with this `st_dev`."""
        return self.hosts.get(image_devno, image_devno)

    def hosts_of(self, image: ImageKey) -> tuple[Devno, ...]:
        """The superblocks that hold an image and those beneath it."""
        return tuple(dict.fromkeys(self.host(devno) for devno, _ in self.chain(image)))

    def chain(self, image: ImageKey) -> tuple[ImageKey, ...]:
        """An image and those beneath it, nearest first."""
        found: dict[ImageKey, None] = {}
        above: ImageKey | None = image
        while above is not None and above not in found:
            found[above] = None
            above = self.image_bases.get(above)
        return tuple(found)

    def superblocks_of(self, ve_id: VeId) -> list[Superblock]:
        """The filesystems of a VE: mounted by it, or mounted and declared as its volume."""
        return self._of_ve.get(ve_id, [])

    def lower(self, devno: Devno) -> tuple[Devno, ...]:
        """What a filesystem or block device rests on directly: devices, an image's host, the
        filesystems of the VE that serves it."""
        found: list[Devno] = []
        if (superblock := self.mounted(devno)) is not None:
            found += superblock.members
        if (remote := self.remote.get(devno)) is not None and remote.served_by is not None:
            found += [superblock.devno for superblock in self.superblocks_of(remote.served_by)]
        if (device := self.devices.get(devno)) is not None:
            found += device.lower
            if device.backing.inode_key is not None:
                found += self.hosts_of(device.backing.inode_key)
        return tuple(one for one in dict.fromkeys(found) if one != devno)

    def beneath(self, devno: Devno) -> tuple[Devno, ...]:
        """Everything that a filesystem or block device rests on, nearest first, without itself.

        Each once: what a reading in the middle of a change may make of it cannot lead in circles.
        """
        lower = self.lower(devno)
        if len(lower) != 1:
            return self._all_beneath(devno)
        # A thousand images on one host: what lies beneath that is worked out once.
        (only,) = lower
        below = self._beneath.get(only)
        if below is None:
            below = self._beneath[only] = self._all_beneath(only)
        return self._all_beneath(devno) if devno in below else (only, *below)

    def _all_beneath(self, devno: Devno) -> tuple[Devno, ...]:
        found = {devno: None}
        level: tuple[Devno, ...] = (devno,)
        for _ in range(_MAX_DEPTH):
            level = tuple(
                dict.fromkeys(
                    lower for one in level for lower in self.lower(one) if lower not in found
                )
            )
            if not level:
                break
            found.update(dict.fromkeys(level))
        return tuple(found)[1:]

    def dependents(self, devno: Devno) -> Users:
        """Who depends on a filesystem or block device through what rests on it, and only so.

        A VE whose image lies on it counts also while the VE is stopped. Worked out once a view.
        """
        if not self._dependents:
            self.work_out_dependents()
        return self._dependents.get(devno, _NOBODY)

    def affected(self, devno: Devno) -> tuple[VeId, ...]:
        """Every VE that an error of it concerns: its users, then those through the stack."""
        return (*self.users.get(devno, _NOBODY).ves, *self.dependents(devno).ves)

    def own_image(self, path: str) -> tuple[str, ...]:
        """What the node uses an image for that is not mounted: as its swap area."""
        return tuple(
            words
            for devno, words in self.own.items()
            if devno in self.devices and self.devices[devno].backing.image == path
        )

    def attached(self, filesystem: Filesystem) -> Superblock | None:
        """What an incident remembers, where it is mounted still; None where its number went on to
        another one."""
        found = self.superblocks.get(filesystem.devno) if filesystem.devno is not None else None
        return found if found is not None and self.describe(found).key == filesystem.key else None

    def bare_device(self, filesystem: Filesystem) -> BlockDevice | None:
        """The device that an incident is about which names none of the filesystems on it; None
        where its number went on to another one."""
        devno = filesystem.devno
        if devno is None or filesystem.boot is not None or names_filesystem(filesystem.fstype):
            return None
        device = self.devices.get(devno)
        same = device is not None and device.disk_sequence == filesystem.disk_sequence
        return device if same else None

    def gone_over(self, filesystem: Filesystem) -> bool:
        """Whether the number that an incident remembers belongs to another one by now."""
        devno = filesystem.devno
        if devno is None:
            return False
        if filesystem.boot is not None:
            return devno in self.users or devno in self.devices
        if (found := self.superblocks.get(devno)) is not None:
            return self.describe(found).key != filesystem.key
        # Overlays and what servers serve are numbered like btrfs.
        if (other := self.overlays.get(devno) or self.remote.get(devno)) is not None:
            return other.fstype != filesystem.fstype
        device = self.devices.get(devno)
        return device is not None and device.disk_sequence != filesystem.disk_sequence

    def successor(self, filesystem: Filesystem, ves: Collection[str]) -> Superblock | None:
        """The volume that an incident of these VEs remembers, mounted again; None where more than
        one may be it.

        The number of an inode is given to the next file at once, the name of a device to the next
        one, and a UUID is copied with a template: none of these says it alone. What another VE has
        by now is another VE's.
        """
        wanted, uuid = filesystem, filesystem.uuid
        mounted = [(found, self.describe(found)) for found in self.superblocks.values()]
        if wanted.image is not None or wanted.image_inode is not None:
            fitting = [
                one
                for one, now in mounted
                if (_at_its_path(now, wanted) or _on_its_inode(now, wanted))
                and not self._is_of_others(one, ves)
            ]
        else:
            same = [
                (one, now)
                for one, now in mounted
                if uuid is not None
                and (now.uuid, now.image_inode) == (uuid, None)
                and self._may_be_its_device(now, wanted, ves)
                and not self._is_of_others(one, ves)
            ]
            # Names are dealt anew at each boot, also among those of one UUID.
            named = [one for one, now in same if (now.device, None) == (wanted.device, wanted.boot)]
            fitting = named or [one for one, _ in same]
        return fitting[0] if len(fitting) == 1 else None

    def _is_of_others(self, superblock: Superblock, ves: Collection[str]) -> bool:
        users = self.users[superblock.devno].ves
        return bool(ves) and bool(users) and not set(users) & set(ves)

    def _may_be_its_device(self, now: Filesystem, wanted: Filesystem, ves: Collection[str]) -> bool:
        """A snapshot of it has its UUID: what the node mounts beside a VE is the VE's volume only
        where that is the very device."""
        attached = (now.devno, now.disk_sequence, None)
        if now.disk_sequence and (wanted.devno, wanted.disk_sequence, wanted.boot) == attached:
            return True
        if ves:
            return now.devno is not None and not set(self.users[now.devno].ves).isdisjoint(ves)
        return wanted.boot is not None or now.device == wanted.device

    def describe(self, superblock: Superblock) -> Filesystem:
        """A superblock of this view as incidents remember it; worked out once."""
        known = self._described.get(superblock.devno)
        if known is None:
            known = self._described[superblock.devno] = describe(superblock)
        return known

    def owner_of_volume(self, superblock: Superblock) -> VeId | None:
        """The VE that declares this superblock's image or device as its volume."""
        inode = superblock.backing.inode_key
        if inode is not None and inode in self.image_owners:
            return self.image_owners[inode]
        return self.device_owners.get(superblock.devno)

    def _shown(self, bases: tuple[ImageKey, ...]) -> list[Devno]:
        """The devices that show these images to somebody, and the filesystems on them."""
        if not bases:
            return []
        devices = [d.devno for d in self.devices.values() if d.backing.inode_key in bases]
        above = [found.devno for one in devices if (found := self.superblock_on(one)) is not None]
        return [*devices, *above]

    def work_out_dependents(self) -> None:
        """Do now what the first question for `dependents` would have to do."""
        ves: dict[Devno, dict[VeId, None]] = {}
        foreign: dict[Devno, dict[str, None]] = {}
        for devno, users in self.users.items():
            above = self.mounted(devno)
            name = above.device if above is not None else str(devno)
            if (remote := self.remote.get(devno)) is not None:
                name = remote.source
            for lower in self.beneath(devno):
                ves.setdefault(lower, {}).update(dict.fromkeys(users.ves))
                others = (f"{one} (through {name})" for one in users.foreign)
                foreign.setdefault(lower, {}).update(dict.fromkeys(others))
        for devno in self.own.keys() - self.users.keys():
            for lower in self.beneath(devno):
                foreign.setdefault(lower, {})[self.own[devno]] = None
        owned = {
            (host, ve_id): None
            for image, ve_id in self.image_owners.items()
            for host in (*self.hosts_of(image), *self._shown(self.chain(image)[1:]))
        }
        for host, ve_id in owned:
            for devno in (host, *self.beneath(host)):
                ves.setdefault(devno, {})[ve_id] = None
        for device, ve_id in self.device_owners.items():
            for devno in self.beneath(device):
                ves.setdefault(devno, {})[ve_id] = None
        for devno in {*ves, *foreign}:
            direct = self.users.get(devno, _NOBODY).ves
            self._dependents[devno] = Users(
                ves=tuple(ve_id for ve_id in ves.get(devno, ()) if ve_id not in direct),
                foreign=tuple(foreign.get(devno, ())),
            )

    def _users(self, superblock: Superblock) -> Users:
        declared = self.owner_of_volume(superblock)
        users = self._mounted_by(superblock.mounts, declared)
        if (own := self.own.get(superblock.devno)) is not None:
            others = (one for one in users.foreign if not own.startswith(one))
            users = replace(users, foreign=(own, *others))
        return users

    def _mounted_by(
        self, places: tuple[NamespaceMount, ...], declared: VeId | None = None
    ) -> Users:
        ves: dict[VeId, None] = {}
        foreign: dict[str, None] = {}
        by_node: list[Mount] = []
        if declared is not None:
            ves[declared] = None
            if self.ves[declared].node_mounts:
                by_node = [one.mount for one in places if one.namespace == self.node_namespace]
        for place in places:
            owner = self.owners.get(place.namespace)
            if owner is None:
                foreign["a mount namespace without a known owner"] = None
            elif place.unreached:
                foreign[f"{owner} (a mount that it cannot reach, left from when it started)"] = None
            elif VeId(owner) in self.ves:
                ves[VeId(owner)] = None
            elif not any(one is place.mount or goes_with(place.mount, one) for one in by_node):
                # Services of systemd have mount namespaces with copies of all that the node mounts.
                foreign[owner] = None
        return Users(ves=tuple(ves), foreign=tuple(foreign))


def _at_its_path(now: Filesystem, wanted: Filesystem) -> bool:
    if None in (wanted.image, wanted.uuid):
        return False
    return (now.image, now.uuid) == (wanted.image, wanted.uuid)


def _on_its_inode(now: Filesystem, wanted: Filesystem) -> bool:
    if wanted.image_inode is None or now.image_inode != wanted.image_inode:
        return False
    if None not in (now.uuid, wanted.uuid):
        return now.uuid == wanted.uuid
    # Nothing but its path tells it from the file that has got the inode of one that was deleted.
    if None in (now.image, wanted.image):
        return wanted.boot is None
    return now.image == wanted.image


def describe(superblock: Superblock) -> Filesystem:
    """The superblock as incidents remember it."""
    inode = superblock.backing.inode_key
    return Filesystem(
        devno=superblock.devno,
        device=superblock.device,
        fstype=superblock.fstype,
        uuid=superblock.uuid,
        disk_sequence=superblock.disk_sequence,
        image=superblock.backing.image,
        image_inode=(str(inode[0]), inode[1]) if inode else None,
        mountpoints=tuple(dict.fromkeys(place.mount.point for place in superblock.mounts))[:16],
    )
