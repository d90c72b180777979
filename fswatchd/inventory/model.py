"""The picture of a node at one moment: who mounts what, on which device, backed by what.

Pure values. Identity is never a name or a PID alone: a superblock is device number plus
DISKSEQ, an image is device plus inode, a VE is platform plus native id plus the start time of
its init process and its mount namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from fswatchd.devno import Devno
from fswatchd.events import VeState
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A filesystem of a VE as its platform or `ve.d` declares it: an image file or a device.

    `format` is "raw" where that is the filesystem itself, from its first byte on. All else names
    what has to open it first (`ploop`, `cow`, `qcow2`; `disk` is a guest's), then `device` is what
    came of that, while it is open. `shared` says that other nodes make volumes where it lies, too.
    `detach` takes it out of its VE while that runs, `attach` puts it back; empty where that cannot
    be.
    """

    image: str | None = None
    device: str | None = None
    mountpoint: str = "/"
    format: str = "raw"
    shared: bool = False
    detach: tuple[str, ...] = ()
    attach: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Of the image or the device, as it is declared."""
        return self.image or self.device or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """How the platform starts, stops, kills, freezes and thaws a VE; empty where it cannot.

    A VE without `freeze` is frozen by its cgroup. `migrate` moves it to the node that stands for
    `{to}`.
    """

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    kill: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()
    migrate: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What keeps the platform's own tools away from a VE while something is done to it.

    Either a `file` that they flock(2), or commands that set and take away a lock of theirs.
    `commands` are the VE's that work while the lock is held by us, each empty where the usual one
    does: a platform whose own tools would wait for it, and has none that do not, has no lock for
    us. `busy` is what `Ve.busy` says of a VE with this lock. `written_in` is the file it stands in:
    as long as nobody has written that again the lock is the one that was taken.
    """

    file: str | None = None
    take: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    commands: Commands = Commands()
    busy: str | None = None
    written_in: str | None = None


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

    `labels_known` is false until its platform has told them: its owner may have asked for care.

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
    labels_known: bool = True
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
    """One mounted filesystem that rests on no device of this node (see `kernel.remote`).

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
