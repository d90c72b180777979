"""On which filesystem a file or a directory lies, where its device number does not tell.

`st_dev` names no superblock on btrfs (each subvolume has an anonymous number of its own, also the
top one) and on an overlay of several filesystems (the layer's). The mount does: its id from
/proc/self/fdinfo (proc_pid_fdinfo(5)) leads to the line of mountinfo that has the superblock's
number. For the layers of an overlay there are only the words that it was mounted with: these are
compared with the mount table as text, and nothing is looked up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fswatchd.devno import Devno
from fswatchd.inventory.model import SCANNED_FILESYSTEMS, ImageKey, NamespaceKey, Superblock
from fswatchd.kernel import mountinfo
from fswatchd.kernel.mounts import Mount

OVERLAY = "overlay"
_LOCAL = SCANNED_FILESYSTEMS | {"tmpfs", "zfs"}
_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)

# A process in the namespace, None where none is known.
PidIn = Callable[[NamespaceKey], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The directories of an overlay as whoever mounted it named them (overlayfs.rst).

    `lower` is only read, `upper` (upperdir and workdir) is written.
    """

    lower: tuple[str, ...] = ()
    upper: tuple[str, ...] = ()


def layers(options: Iterable[str]) -> Layers:
    """From an overlay's superblock options, escaped as in mountinfo.

    `lowerdir` separates by colons, with `\\:` for one in a name and `::` before layers of data
    only; `lowerdir+` and `datadir+` (Linux 6.8) name one directory each, as it is.
    """
    lower: list[str] = []
    upper: list[str] = []
    for option in options:
        key, _, escaped = option.partition("=")
        value = mountinfo.unescape(escaped)
        if key == "lowerdir":
            lower += [part for part in _split(value) if part]
        elif key in {"lowerdir+", "datadir+"}:
            lower.append(value)
        elif key in {"upperdir", "workdir"}:
            upper.append(value)
    return Layers(lower=tuple(lower), upper=tuple(upper))


def _split(value: str) -> list[str]:
    parts = re.findall(r"((?:\\.|[^\\:])*)(?::|$)", value, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]


@dataclass(slots=True)
class MountTree:
    """The mounts of one namespace, as a lookup passes through them."""

    table: Sequence[Mount]
    _children: dict[tuple[int, str], Mount] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for mount in self.table:
            if mount.parent_id != mount.mount_id:
                self._children[mount.parent_id, mount.point] = mount

    def covering(self, path: str) -> Mount | None:
        """The mount that an absolute path without symbolic links leads to; None where unknown.

        As the kernel goes: what is mounted below a directory over which something else was
        mounted later is not reached.
        """
        parts = path.split("/")
        if not path.startswith("/") or ".." in parts:
            return None
        known = {mount.mount_id for mount in self.table}
        roots = (
            m for m in self.table if m.point == "/" and m.parent_id not in known - {m.mount_id}
        )
        current = next(roots, None)
        if current is None:
            return None
        current = self._topmost(current, "/")
        place = ""
        for part in parts:
            if part not in {"", "."}:
                place += f"/{part}"
                current = self._topmost(current, place)
        return current

    def _topmost(self, mount: Mount, place: str) -> Mount:
        passed: set[int] = set()
        while (above := self._children.get((mount.mount_id, place))) is not None:
            if above.mount_id in passed:
                break  # a table that was read in the middle of a change
            passed.add(above.mount_id)
            mount = above
        return mount


class Places:
    """Answers for one node; remembers what cannot change while the node's mounts stay.

    Used from the scanning thread. Tables are read at most once a scan, and only when there is a
    question.
    """

    def __init__(self) -> None:
        self._mounted: frozenset[int] = frozenset()
        self._hosts: dict[tuple[str, ImageKey], Devno | None] = {}
        self._rests: dict[Devno, tuple[Superblock, tuple[Devno, ...], tuple[Devno, ...]]] = {}
        self._trees: dict[int | str, MountTree] = {}

    def forget(self) -> None:
        """Ask everything anew that had no answer, and for every file."""
        self._hosts.clear()
        self._rests = {devno: known for devno, known in self._rests.items() if known[1]}

    def begin(self, node_mounts: Iterable[Mount]) -> None:
        """A scan begins, and found these mounts in the node's namespace."""
        self._trees.clear()
        mounted = frozenset(mount.mount_id for mount in node_mounts)
        if mounted != self._mounted:
            self._mounted = mounted
            self._hosts.clear()

    def hosts(
        self, files: Mapping[ImageKey, str], superblocks: Mapping[Devno, object]
    ) -> dict[Devno, Devno]:
        """Device numbers of these files that are no superblock's → that of the superblock.

        Files are (`st_dev`, inode) → a path that led there a moment ago.
        """
        found: dict[Devno, Devno] = {}
        for key, path in files.items():
            devno = key[0]
            if devno.major != 0 or devno in superblocks or devno in found:
                continue
            if (path, key) not in self._hosts:
                self._hosts[path, key] = self._superblock_of(path, key)
            host = self._hosts[path, key]
            if host is not None and host != devno:
                found[devno] = host
        return found

    def rests_on(
        self, overlay: Superblock, node: NamespaceKey, pid_in: PidIn
    ) -> tuple[tuple[Devno, ...], tuple[Devno, ...]]:
        """The superblocks that hold an overlay's layers: all of them, and those of lower layers.

        They stay what they are while it is mounted, for it holds them. Empty where all paths are
        relative: nobody can say to what.
        """
        known = self._rests.get(overlay.devno)
        if known is not None and _shares_a_mount(known[0], overlay):
            self._rests[overlay.devno] = (overlay, known[1], known[2])
            return known[1], known[2]
        named = layers(overlay.mounts[0].mount.superblock_options)
        trees = self._trees_of_layers(overlay, node, pid_in)
        lower = _numbers(trees, named.lower, overlay.devno)
        upper = _numbers(trees, named.upper, overlay.devno)
        both = tuple(dict.fromkeys((*upper, *lower)))
        self._rests[overlay.devno] = (overlay, both, lower)
        return both, lower

    def keep_only(self, overlays: Mapping[Devno, Superblock]) -> None:
        """Forget overlays that are gone."""
        self._rests = {devno: known for devno, known in self._rests.items() if devno in overlays}

    def is_local(self, path: str) -> bool:
        """Whether a path is on a filesystem of this node that may be asked without a deadline.

        By the mount table alone. A symbolic link on the way may lead elsewhere, but only root can
        put one where the node keeps its images.
        """
        mount = self._tree("self").covering(path)
        return mount is not None and mount.fstype in _LOCAL

    def _trees_of_layers(
        self, overlay: Superblock, node: NamespaceKey, pid_in: PidIn
    ) -> list[MountTree]:
        """The mounts among which the paths of its layers mean something.

        The node's where the node sees the overlay, and where it is the root of a namespace (its
        layers cannot lie in itself: the platform has mounted it from outside). Any other was
        mounted by the VE, or by its platform before the VE had its root: nothing tells which, and
        so it rests on both, because a layer that is overlooked may be written.
        """
        namespaces = dict.fromkeys(place.namespace for place in overlay.mounts)
        trees = [self._tree("self")]
        if node in namespaces or any(place.mount.point == "/" for place in overlay.mounts):
            return trees
        pid = next((pid for one in namespaces if (pid := pid_in(one)) is not None), None)
        return trees if pid is None else [self._tree(pid), *trees]

    def _tree(self, pid: int | str) -> MountTree:
        if pid not in self._trees:
            table: list[Mount] = []
            with suppress(OSError):
                table = mountinfo.read(pid)
            self._trees[pid] = MountTree(table)
        return self._trees[pid]

    def _superblock_of(self, path: str, key: ImageKey) -> Devno | None:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(fd)
            if (Devno.of(status.st_dev), status.st_ino) != key:
                return None
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                match = _MOUNT_ID.search(file.read())
        except OSError:
            return None
        finally:
            os.close(fd)
        wanted = int(match[1]) if match else None
        return next((m.devno for m in self._tree("self").table if m.mount_id == wanted), None)


def _numbers(trees: Iterable[MountTree], paths: Iterable[str], itself: Devno) -> tuple[Devno, ...]:
    mounts = (tree.covering(path) for tree in trees for path in paths)
    found = dict.fromkeys(mount.devno for mount in mounts if mount is not None)
    return tuple(devno for devno in found if devno != itself)


def _shares_a_mount(old: Superblock, new: Superblock) -> bool:
    before = {(place.namespace, place.mount.mount_id) for place in old.mounts}
    return any((place.namespace, place.mount.mount_id) in before for place in new.mounts)
