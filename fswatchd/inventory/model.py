"""The picture of a node at one moment: who mounts what, on which device, backed by what.

Pure values. Identity is never a name or a PID alone: a superblock is device number plus
DISKSEQ, an image is device plus inode, a VE is platform plus native id plus the start time of
its init process and its mount namespace.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NewType

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.incidents import Filesystem
from fswatchd.kernel.mounts import Mount

VeId = NewType("VeId", str)
NamespaceKey = NewType("NamespaceKey", int)  # inode of the mount namespace

# Filesystems with a device of their own that can be damaged. Everything else in a mount table
# (proc, tmpfs, overlay…) rests on one of these or on memory.
DISK_FILESYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "nilfs2", "gfs2", "ocfs2", "jfs"}
)
# Those, and the one that is made of directories of others.
SCANNED_FILESYSTEMS = DISK_FILESYSTEMS | {"overlay"}

ImageKey = tuple[Devno, int]  # device (`st_dev`) and inode of an image file

# Filesystems whose storage is another machine's, or a program's: what others do to it shows nowhere
# on this node.
_REMOTE_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "ceph", "cifs", "smb3", "9p", "virtiofs", "afs", "lustre", "beegfs", "gpfs"}
    | {"orangefs", "coda", "glusterfs", "vboxsf", "fuse"}
)
# Programs that show what the node knows, at many places of every container; nobody's storage.
_NO_STORAGE = frozenset({"fuse.lxcfs", "fuse.gvfsd-fuse", "fuse.portal"})


def is_remote(fstype: str) -> bool:
    """Whether a filesystem of this type has its storage elsewhere; FUSE counts, it cannot be told.

    The part after `fuse.` is what the program calls itself.
    """
    return fstype.partition(".")[0] in _REMOTE_FILESYSTEMS and fstype not in _NO_STORAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A filesystem of a VE as its platform or `ve.d` declares it: an image file or a device.

    `format` is "raw" where that is the filesystem itself, from its first byte on. All else names
    what has to open it first (`ploop`, `cow`, `qcow2`; `disk` is a guest's), then `device` is what
    came of that, while it is open.
    """

    image: str | None = None
    device: str | None = None
    mountpoint: str = "/"
    format: str = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """How the platform starts, stops, kills, freezes and thaws a VE; empty where it cannot.

    A VE without `freeze` is frozen by its cgroup.
    """

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    kill: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What keeps the platform's own tools away from a VE while something is done to it.

    Either a `file` that they flock(2), or commands that set and take away a lock of theirs.
    `commands` are the VE's that work while the lock is held by us, each empty where the usual one
    does: a platform whose own tools would wait for it, and has none that do not, has no lock for
    us. `busy` is what `Ve.busy` says of a VE with this lock.
    """

    file: str | None = None
    take: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    commands: Commands = Commands()
    busy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFilesystem:
    """A filesystem that a virtual machine says it has mounted; the device's name is its own."""

    device: str
    fstype: str
    mountpoint: str
    total_bytes: int | None = None
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ve:
    """One container or guest.

    `guest` says that it is a virtual machine: `init_pid` is the program of the node that runs it,
    whose mounts are the node's, and its volumes are disks, which its own kernel mounts; what that
    says of itself is in `guest_filesystems`.
    `unrepairable` says what it is ("a pod, …") where nothing on its volumes may be repaired here,
    whatever the rules say.

    `namespace` is None while it does not run and where it shares the node's; `namespace_id` is the
    kernel's own id of it, which is never given away again (None before Linux 6.11). `node_mounts`
    says that the platform mounts the VE's volumes in the node's own namespace, and unmounts them
    when the VE stops. `lock` keeps its platform's tools away. `aliases` are ids that other
    platforms know the same VE by. `busy` says what its platform is doing with it (a backup, a
    migration), None where nothing. `scratch` is true only for VEs that a drill registered with this
    daemon, `hands_off` for those of a drill that another daemon handles. `serves` names what it
    serves to others, as they mount it (`nas:/export`).
    """

    ve_id: VeId
    platform: str
    native_id: str
    name: str
    state: VeState
    labels: Mapping[str, str] = field(default_factory=dict)
    init_pid: int | None = None
    init_started: int | None = None
    namespace: NamespaceKey | None = None
    namespace_id: int | None = None
    cgroup: str | None = None
    volumes: tuple[Volume, ...] = ()
    commands: Commands = Commands()
    lock: Lock | None = None
    node_mounts: bool = False
    aliases: tuple[VeId, ...] = ()
    busy: str | None = None
    serves: tuple[str, ...] = ()
    scratch: bool = False
    hands_off: bool = False
    guest: bool = False
    guest_filesystems: tuple[GuestFilesystem, ...] = ()
    unrepairable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """What a block device rests on.

    For a loop, nbd or ploop device: the image's inode and host filesystem, and its path where one
    is known that still leads to this inode.
    """

    kind: str
    image: str | None = None
    image_devno: Devno | None = None
    image_inode: int | None = None
    offset: int = 0

    @property
    def inode_key(self) -> tuple[Devno, int] | None:
        """(device, inode) of the image, None where there is no image."""
        if self.image_devno is None or self.image_inode is None:
            return None
        return (self.image_devno, self.image_inode)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """One block device and what it rests on directly.

    `kind` is `loop`, `partition`, `dm`, `md`, `nbd`, `ploop` or `disk`; `lower` are the devices
    beneath it, and `bases` those of them that it only reads (the external origin of a thin volume).
    `backing` names the image of a loop, nbd or ploop device. `label` is what its owner calls it (dm
    only). `transport` is the network that a disk is reached over (`iSCSI`), empty for a local one.
    """

    devno: Devno
    name: str
    kind: str
    disk_sequence: int | None = None
    lower: tuple[Devno, ...] = ()
    backing: Backing = Backing(kind="device")
    label: str = ""
    bases: tuple[Devno, ...] = ()
    transport: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceMount:
    """A mount and the namespace it is in.

    `unreached` is true where the VE of the namespace cannot reach it (see `reach`): then it is no
    user of the filesystem, but the mount keeps that from going away.
    """

    namespace: NamespaceKey
    mount: Mount
    unreached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """One mounted filesystem: all its mounts everywhere, and its device.

    `members` are the block devices of a btrfs, whose `devno` is no block device's, and the
    superblocks that hold the layers of an overlay; `bases` are those of its lower layers, which it
    needs as they are. `mmp` is true where an ext4 protects itself from being mounted by a second
    node (ext4(5), mmp).
    """

    devno: Devno
    fstype: str
    device: str
    disk_sequence: int | None
    mounts: tuple[NamespaceMount, ...]
    backing: Backing
    uuid: str | None = None
    fsid: bytes | None = None
    members: tuple[Devno, ...] = ()
    bases: tuple[Devno, ...] = ()
    mmp: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The superblock's options, with `ro` where the kernel has it read-only."""
        mount = self.mounts[0].mount
        return (*(("ro",) if mount.superblock_readonly else ()), *mount.superblock_options)

    @property
    def identity(self) -> tuple[Devno, int | None, str | None]:
        """Equal only for the same filesystem on the same attachment of the device."""
        return (self.devno, self.disk_sequence, self.uuid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFilesystem:
    """One mounted filesystem that rests on no device of this node (see `is_remote`).

    `source` is what was mounted (`nas:/export`) and `address` the `addr` option, both as whoever
    mounted it wrote them. `served_by` is the VE of this node that serves it, where that is known.
    It is never opened: its server may not answer.
    """

    devno: Devno
    fstype: str
    source: str
    mounts: tuple[NamespaceMount, ...]
    address: str = ""
    served_by: VeId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """Who uses a superblock: VEs, and anybody else by description."""

    ves: tuple[VeId, ...] = ()
    foreign: tuple[str, ...] = ()


_NOBODY = Users()
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
    node_namespace: NamespaceKey = NamespaceKey(0)
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
            "_dependents": {},
        }
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
        if declared is not None:
            ves[declared] = None
        for place in places:
            owner = self.owners.get(place.namespace)
            if owner is None:
                foreign["a mount namespace without a known owner"] = None
            elif place.unreached:
                foreign[f"{owner} (a mount that it cannot reach, left from when it started)"] = None
            elif VeId(owner) in self.ves:
                ves[VeId(owner)] = None
            elif not (
                place.namespace == self.node_namespace
                and declared is not None
                and self.ves[declared].node_mounts
            ):
                foreign[owner] = None
        return Users(ves=tuple(ves), foreign=tuple(foreign))


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
