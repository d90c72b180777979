"""Mounts that a VE's namespace holds and the VE cannot reach.

A namespace begins as a copy of another one. Most runtimes change the root by pivot_root(2) and
detach what was there; some move the new root over the old one (systemd-nspawn before 253), and the
copies of the node's mounts stay beneath it for the life of the VE. Such a VE is no user of these
filesystems: it can neither read nor write them. But a copy keeps its superblock from going away,
unless it goes with the mount that it is a copy of, as mounts of a slave do (mount_namespaces(7)).

A mount that only lies under another one is in use all the same: by whoever had it open before.
Only what lies beneath a namespace's *root* can be out of reach, and only as long as the VE's first
process stands on that root and not beneath it, which `unreached` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fswatchd.kernel.mounts import Mount


def covered(found: Mapping[int, Mount]) -> frozenset[int]:
    """The mounts of one namespace, by their ids, that neither are on its root nor on what is there.

    The root is the uppermost of the mounts that are stacked at `/`. One that is entered by
    chroot(2) alone is not there, and covers nothing: chroot is no way to keep anybody in.
    """
    at_root = {
        mount.parent_id: mount_id
        for mount_id, mount in found.items()
        if mount.point == "/" and mount.parent_id in found
    }
    lowest = [
        mount_id
        for mount_id, mount in found.items()
        if mount.point == "/" and mount.parent_id not in found
    ]
    if not at_root or len(lowest) != 1:
        return frozenset()
    root = lowest[0]
    on_the_way = {root}
    while (above := at_root.get(root)) is not None and above not in on_the_way:
        on_the_way.add(above)
        root = above
    return frozenset(found) - _with_all_above(root, found)


def _with_all_above(root: int, found: Mapping[int, Mount]) -> set[int]:
    children: dict[int, list[int]] = {}
    for mount_id, mount in found.items():
        children.setdefault(mount.parent_id, []).append(mount_id)
    reached = {root}
    left = [root]
    while left:
        fresh = [child for child in children.get(left.pop(), ()) if child not in reached]
        reached.update(fresh)
        left += fresh
    return reached


def unreached(
    found: Iterable[Mount], covered_ids: frozenset[int], seen_by_init: frozenset[int]
) -> frozenset[int]:
    """Which of the mounts are out of the VE's reach.

    `seen_by_init` are the ids in mountinfo of its first process, which lists what can be reached
    from where its root is (fs/proc_namespace.c, `show_mountinfo`).
    """
    return frozenset(
        mount.mount_id
        for mount in found
        if mount.mount_id in covered_ids and mount.old_id not in seen_by_init
    )


def goes_with(mount: Mount, other: Mount) -> bool:
    """Whether `mount` is unmounted with `other`, of which it is a copy in another namespace.

    That follows from what they are mounted on (fs/pnode.c, `propagate_umount`). One that somebody
    works in is not: then neither of them is unmounted (EBUSY), or both are and the filesystem
    stays.
    """
    peer_group, _ = other.parent_peers
    same_place = (mount.devno, mount.root, mount.point) == (other.devno, other.root, other.point)
    return peer_group != 0 and peer_group in mount.parent_peers and same_place
