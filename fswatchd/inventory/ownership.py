"""Whose a filesystem may be beside the VE that shows: other nodes', a server's, the node's own.

Pure questions to a `NodeView`. O_EXCL and the mount table prove nothing about another node, so
whatever others can reach too is never repaired by itself: nobody here holds the lock of their
cluster or platform. Not here: what a SCSI reservation or a shared LVM says, which the kernel does
not show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.inventory.model import NamespaceKey, NamespaceMount, RemoteFilesystem
from fswatchd.inventory.view import NodeView

_CLUSTER_FILESYSTEMS = frozenset({"ocfs2", "gfs2"})
# Major numbers of drbd and rbd are not fixed; the kernel's names of their disks are.
_REPLICATED = {"drbd": "DRBD", "rbd": "Ceph RBD", "nbd": "NBD"}
_DEVICE = re.compile(r"(drbd|rbd|nbd)\d+(?:p\d+)?")
# What the node needs to run, boot and be logged into.
_OWN_POINTS = frozenset({"/", "/boot", "/boot/efi", "/efi", "/etc", "/usr", "/var"})
_SHOWN = 200
# What the lines of one client's code are filed under.
_FAMILY = {"nfs4": "nfs", "smb3": "cifs"}
WHAT_NOW = (
    "whether another node uses it cannot be seen from here, so nothing is repaired; make sure that "
    "the VE runs nowhere, hold the lock of the cluster or platform, and check it by hand"
)


def shared_with(view: NodeView, devno: Devno) -> str | None:
    """Why another node may use the filesystem or device too, None where nothing says so."""
    found = view.superblocks.get(devno)
    if found is not None and found.mmp:
        return f"multiple mount protection is set on {found.device} (mmp, ext4(5))"
    return _shared(view, (devno, *view.beneath(devno)), devno)


def shared_image(view: NodeView, path: str, host: Devno | None = None) -> str | None:
    """The same for an image file that is not attached, by the filesystem it lies on.

    Without `host` by the text of its path alone: nothing is looked up, for a server that does not
    answer would hold up whoever asked.
    """
    if host is None or not (host in view.remote or host in view.superblocks):
        mounts = {devno: found.mounts for devno, found in view.superblocks.items()}
        mounts |= {devno: found.mounts for devno, found in view.remote.items()}
        points = node_points(mounts, view.node_namespace)
        nearest = longest_prefix(path, points)
        host = points[nearest] if nearest is not None else None
    return _shared(view, (host, *view.beneath(host))) if host is not None else None


def _shared(view: NodeView, numbers: Sequence[Devno], itself: Devno | None = None) -> str | None:
    """A local filesystem that is mounted here holds its disk, whatever network that is reached
    over; what is replicated, or mounted by several nodes, is others' too at any depth."""
    held = False
    for number in numbers:
        if (remote := view.remote.get(number)) is not None:
            return f"its image lies on {name(view, remote)}, which other nodes can reach as well"
        superblock = view.superblocks.get(number)
        if superblock is not None:
            if superblock.fstype in _CLUSTER_FILESYSTEMS:
                point = printable(_point(view, superblock.mounts), _SHOWN)
                return f"{superblock.fstype} {point} is a cluster filesystem: other nodes mount it"
            held = held or number != itself
        device = view.devices.get(number)
        if device is None:
            continue
        known = _DEVICE.fullmatch(device.name)
        if known is not None and not (known[1] == "nbd" and view.lower(number)):
            return f"/dev/{device.name} is {_REPLICATED[known[1]]}: other nodes can have it as well"
        if device.transport and not held:
            over = f"/dev/{device.name} is reached over {device.transport}"
            return f"{over}, as other nodes may reach it too"
    return None


def name(view: NodeView, remote: RemoteFilesystem) -> str:
    """A served filesystem in a few words: `nfs4 /vz (nas:/export)`."""
    point = printable(_point(view, remote.mounts), _SHOWN)
    served = f", served by {remote.served_by}" if remote.served_by else ""
    return f"{printable(remote.fstype, 40)} {point} ({printable(remote.source, _SHOWN)}{served})"


def longest_prefix(path: str, points: Iterable[str]) -> str | None:
    """The mount point that a path is on, by its text."""
    above = [p for p in points if path == p or path.startswith(p.rstrip("/") + "/")]
    return max(above, key=len, default=None)


def node_points(
    places: Mapping[Devno, Sequence[NamespaceMount]], node: NamespaceKey
) -> dict[str, Devno]:
    """What the node has mounted where."""
    return {
        place.mount.point: devno
        for devno, found in places.items()
        for place in found
        if place.namespace == node
    }


def node_own(
    places: Mapping[Devno, Sequence[NamespaceMount]],
    node: NamespaceKey,
    needed: Iterable[tuple[str, Devno | None, str]],
) -> dict[Devno, str]:
    """The filesystems and devices that the node cannot do without, and what for.

    `needed` are paths that it holds: each with its device number, or that of the device it is, and
    with words for what it is needed for.
    """
    points = node_points(places, node)
    own: dict[Devno, str] = {}
    for path, devno, words in needed:
        if devno is None or (devno.major == 0 and devno not in places):
            # btrfs gives its files other numbers than its mounts have.
            nearest = longest_prefix(path, points)
            devno = points[nearest] if nearest is not None else None
        if devno is not None:
            own[devno] = words
    return own | {devno: f"the node, as its {p}" for p, devno in points.items() if p in _OWN_POINTS}


def served_from(view: NodeView, fstype: str, server: str | None) -> list[RemoteFilesystem]:
    """What is mounted from a server that a kernel line names, under all its names.

    NFS shares one connection among all mounts from an address, and calls it by the first one's
    name. Where the line names none (Ceph), what is mounted of its kind.
    """
    kind = [one for one in view.remote.values() if _FAMILY.get(one.fstype, one.fstype) == fstype]
    if server is None:
        return kind if fstype == "ceph" else []
    named = [one for one in kind if server in {server_of(one.source), one.address}]
    addresses = {one.address for one in named} - {""}
    return [one for one in kind if one in named or one.address in addresses]


def server_of(source: str) -> str:
    """The server in what was mounted: `nas` of `nas:/export`, `[fd00::1]:/x` and `//nas/share`."""
    if source.startswith("//"):
        return source[2:].partition("/")[0]
    if source.startswith("["):
        return source[1:].partition("]")[0]
    server, colon, _ = source.partition(":/")
    return server if colon else ""


def _point(view: NodeView, places: Sequence[NamespaceMount]) -> str:
    return min(
        places, key=lambda place: (place.namespace != view.node_namespace, len(place.mount.point))
    ).mount.point
