"""Keeps the picture of the node current, and opens filesystems without touching their owners.

`refresh` reads everything again and swaps in a new `NodeView`; it is cheap (unique mount ids are
described once) and is called by `watch` whenever something may have changed. Superblocks that are
new are identified through the mount helper and handed to whoever subscribed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory import ownership, reach, serving
from fswatchd.inventory.images import ImageReader
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    NodeView,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.owners import Owners, Unclaimed
from fswatchd.inventory.paths import Key, PatientPaths
from fswatchd.inventory.places import OVERLAY, Places
from fswatchd.inventory.platform import Platform, PlatformError
from fswatchd.inventory.scan import MountScanner, MountTable, best_scanner, open_namespace
from fswatchd.inventory.serving import FuseServers
from fswatchd.inventory.stack import Images, StackReader
from fswatchd.kernel import block, extfs, fs, mountinfo, proc, swap

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 3.0
_MAX_HANGS = 2
_RETRY_BUDGET_S = 0.3
_RETRY_AT_ONCE = 4
_HELPER = "fswatchd.helpers.mounts"

NewSuperblock = Callable[[Superblock, int], None]
VanishedSuperblock = Callable[[Superblock], None]
NamespaceSeen = Callable[[NamespaceKey, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a refresh found different from the view before."""

    appeared: tuple[Superblock, ...] = ()
    vanished: tuple[Superblock, ...] = ()


@dataclass(frozen=True, slots=True)
class _Unreached:
    """How often it was tried to reach a filesystem, and when it is worth the next time."""

    tries: int
    not_before: float

    @classmethod
    def after(cls, failed: _Unreached | None) -> _Unreached:
        tries = failed.tries + 1 if failed else 1
        # Mounts of a VE that starts are in flux for some moments.
        pause_s = 0.0 if tries < _RETRY_AT_ONCE else min(2.0 ** (tries - _RETRY_AT_ONCE), 60.0)
        return cls(tries, time.monotonic() + pause_s)


class Inventory:
    """The live picture. One per daemon; used from the event loop only."""

    def __init__(
        self,
        platforms: Iterable[Platform],
        scanner: MountScanner | None = None,
        unclaimed: Unclaimed | None = None,
        own_paths: Iterable[str] = (),
    ) -> None:
        self.platforms = list(platforms)
        self._own_paths = tuple(own_paths)
        self.scanner = scanner or best_scanner()
        self.view = NodeView()
        self.problems: dict[str, str] = {}
        # What the daemon itself does with a VE, its platform cannot know.
        self.adjust: list[Callable[[Ve], Ve]] = []
        self._helper = Helper(_HELPER)
        self._lock = asyncio.Lock()
        self._on_superblock: list[NewSuperblock] = []
        self._on_vanished: list[VanishedSuperblock] = []
        self._on_namespace: list[NamespaceSeen] = []
        self._owners = Owners(unclaimed)
        self._paths = PatientPaths()
        self._fuse_servers = FuseServers()
        self._stack = StackReader(self._paths.key)
        self._places = Places()
        self._images = ImageReader(self._places)
        # Seen, but not reached yet: nobody watches them, so it is tried again.
        self._unreached: dict[Devno, _Unreached] = {}

    def subscribe(
        self,
        *,
        on_superblock: NewSuperblock | None = None,
        on_vanished: VanishedSuperblock | None = None,
        on_namespace: NamespaceSeen | None = None,
    ) -> None:
        """Be told of new superblocks, with a descriptor on them that is closed after the call, of
        those that are gone, and of every namespace at every refresh (in the scanning thread)."""
        if on_superblock:
            self._on_superblock.append(on_superblock)
        if on_vanished:
            self._on_vanished.append(on_vanished)
        if on_namespace:
            self._on_namespace.append(on_namespace)

    async def close(self) -> None:
        """End the helper."""
        await self._helper.close(kill=True)

    # --- questions ----------------------------------------------------------------------------

    def superblock_of_name(self, device: str) -> Superblock | None:
        """The mounted filesystem on the device that a kernel message names."""
        devno = block.devno_of(device)
        return self.view.superblock_on(devno) if devno else None

    def current_options(self, superblock: Superblock) -> tuple[str, ...] | None:
        """The superblock's options at this moment; None when it is no longer mounted."""
        for place in superblock.mounts:
            mount = self.scanner.current(place.namespace, place.mount)
            if mount is not None and mount.devno == superblock.devno:
                return replace(superblock, mounts=(replace(place, mount=mount),)).options
        return None

    async def root_error(self, superblock: Superblock) -> int:
        """The errno that stat(2) of the superblock's root gives, 0 for none; raises as `opened`."""
        fd, answer = await self._open(superblock)
        os.close(fd)
        return int(answer.get("stat_errno") or 0)

    async def btrfs_error(self, superblock: Superblock) -> int:
        """See `fs.btrfs_error`, for a read-only superblock; raises as `opened`, or TimeoutError."""

        def ask(mount: int) -> int:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            try:
                return fs.btrfs_error(directory)
            finally:
                os.close(directory)

        async with self.opened(superblock) as fd, asyncio.timeout(_OPEN_TIMEOUT_S):
            return await asyncio.to_thread(ask, fd)

    @asynccontextmanager
    async def opened(self, superblock: Superblock) -> AsyncIterator[int]:
        """A descriptor on a detached mount of the superblock, closed on leaving.

        It keeps the superblock alive while it is open. Raises FileNotFoundError when no mount of
        it can be reached any more, or HelperError.
        """
        fd, _ = await self._open(superblock)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- reading ------------------------------------------------------------------------------

    async def refresh(self, *, forget: bool = False) -> Changes:
        """Read VEs and mounts again. With `forget`, nothing is taken from a cache."""
        async with self._lock:
            if forget:
                self.scanner.forget()
                self._stack.forget()
                self._owners.forget()
                self._places.forget()
                self._fuse_servers.forget()
            ves = await self._list_ves()
            view = await asyncio.to_thread(self._scan, ves)
            before = self.view
            self.view = view
            appeared = [
                found
                for devno, found in view.superblocks.items()
                if not _same_superblock(before.superblocks.get(devno), found)
            ]
            for devno in self._unreached.keys() - view.superblocks.keys():
                del self._unreached[devno]
            to_retry = self._to_retry(appeared, before)
            vanished = [
                old
                for devno, old in before.superblocks.items()
                if not _same_superblock(old, view.superblocks.get(devno))
            ]
            for superblock in vanished:
                for callback in self._on_vanished:
                    callback(superblock)
            identified = [await self._identify(found) for found in appeared]
            until = time.monotonic() + _RETRY_BUDGET_S
            identified += [
                await self._identify(found) for found in to_retry if time.monotonic() < until
            ]
            return Changes(appeared=tuple(identified), vanished=tuple(vanished))

    async def announce(self, superblock: Superblock) -> bool:
        """Hand the superblock to the subscribers again; False when it cannot be reached."""
        try:
            async with self.opened(superblock) as fd:
                for callback in self._on_superblock:
                    callback(superblock, fd)
        except (OSError, HelperError):
            return False
        return True

    async def _list_ves(self) -> dict[VeId, Ve]:
        found: list[Ve] = []
        for platform in self.platforms:
            try:
                found += await platform.list_ves()
                self.problems.pop(platform.name, None)
            except PlatformError as error:
                found += error.partial
                self.problems[platform.name] = str(error)
        ves = merged(found)
        for adjusted in self.adjust:
            ves = {ve_id: adjusted(ve) for ve_id, ve in ves.items()}
        return ves

    def _to_retry(self, appeared: list[Superblock], before: NodeView) -> list[Superblock]:
        """Those that could not be reached before and are due, the longest waiting first.

        Somebody may have hidden many: who waits for a refresh must not wait for all of them. What
        is mounted in another way since comes first.
        """
        now = time.monotonic()
        due = []
        for devno in self._unreached.keys() - {found.devno for found in appeared}:
            found, not_before = self.view.superblocks[devno], self._unreached[devno].not_before
            same = found is before.superblocks.get(devno)
            if not same or not_before <= now:
                due.append((same, not_before, found))
        return [found for *_, found in sorted(due, key=lambda one: one[:2])]

    async def _identify(self, superblock: Superblock) -> Superblock:
        try:
            fd, answer = await self._open(superblock)
        except (OSError, HelperError) as error:
            failed = self._unreached.get(superblock.devno)
            if failed is None:
                log.warning("cannot reach the filesystem on %s: %s", superblock.device, error)
            self._unreached[superblock.devno] = _Unreached.after(failed)
            return superblock
        self._unreached.pop(superblock.devno, None)
        try:
            fsid, uuid = answer.get("fsid"), answer.get("uuid")
            superblock = replace(
                superblock,
                uuid=uuid,
                members=block.btrfs_members(uuid) if uuid and superblock.fstype == "btrfs" else (),
                fsid=bytes.fromhex(fsid) if fsid else None,
                mmp=await _mmp(superblock),
            )
            devices = self._stack.read(superblock.members, {})
            self.view = self.view.identified(superblock, devices)
            for callback in self._on_superblock:
                callback(superblock, fd)
        finally:
            os.close(fd)
        return superblock

    async def _open(self, superblock: Superblock) -> tuple[int, dict[str, Any]]:
        failure: Exception = FileNotFoundError(2, "it is not mounted", superblock.device)
        hangs = 0
        places = sorted(
            superblock.mounts, key=lambda place: (place.unreached, place.mount.root != "/")
        )
        for place in places[:8]:
            pid = self._pid_in(place.namespace)
            try:
                ns_fd = await asyncio.to_thread(open_namespace, place.namespace, pid)
            except OSError as error:
                failure = error
                continue
            try:
                answer, fds = await self._helper.request(
                    {"path": place.mount.point, "devno": str(superblock.devno)},
                    (ns_fd,),
                    timeout_s=_OPEN_TIMEOUT_S,
                )
            except OSError as error:
                failure = error
                continue
            except HelperError as error:
                # All VEs share the helper, and no refresh goes on meanwhile: not for long.
                await self._helper.close(kill=True)
                failure, hangs = error, hangs + 1
                if hangs == _MAX_HANGS:
                    break
                continue
            finally:
                os.close(ns_fd)
            return fds[0], answer
        raise failure

    def _pid_in(self, namespace: NamespaceKey) -> int | None:
        owner = self.view.owners.get(namespace)
        if owner is not None and (ve := self.view.ves.get(VeId(owner))) is not None:
            return ve.init_pid
        return self._owners.process_in(namespace)

    # --- in the scanning thread ---------------------------------------------------------------

    def _scan(self, ves: dict[VeId, Ve]) -> NodeView:
        def on_namespace(key: NamespaceKey, fd: int) -> None:
            for callback in self._on_namespace:
                callback(key, fd)

        table = self.scanner.scan(on_namespace)
        device_owners = _device_owners(ves)
        node_namespace = NamespaceKey(proc.mount_namespace_inode("self") or 0)
        owners, ves = self._owners.find(table, ves, node_namespace)
        self._places.begin(table.get(node_namespace, ()))
        everything = _by_device(table, self._unreached_mounts(table, ves))
        remote = serving.mounted(everything, ves)
        served = {devno: found.mounts for devno, found in remote.items()}
        self._paths.served_at(ownership.node_points(served, node_namespace))
        images = _images(ves, self._paths.key)
        mounted = {d: found for d, found in everything.items() if d not in remote}
        layered = {d: found for d, found in mounted.items() if found[0].mount.fstype == OVERLAY}
        places = {d: found for d, found in mounted.items() if d not in layered}
        own = ownership.node_own(mounted, node_namespace, self._needed())
        known = self.view.superblocks
        members = [member for devno in places if devno in known for member in known[devno].members]
        devices = self._stack.read([*places, *members, *device_owners, *own], images)
        self._stack.keep_only(devices)
        self._with_served(devices, images)
        paths = _paths(images, devices)
        # What lies on a server is not opened: it may not answer.
        chains = self._images.chains({key: p for key, p in paths.items() if key[0] not in remote})
        paths |= chains.paths
        hosts: set[Devno | None] = {host for host, _ in paths}
        hosts |= {device.backing.image_devno for device in devices.values()}
        remote = self._fuse_servers.completed(
            remote, serving.used_by_others(remote, hosts, owners), serving.ve_of_process(ves)
        )
        view = NodeView(
            superblocks=self._superblocks(places, devices),
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

    def _with_served(self, devices: dict[Devno, BlockDevice], images: Images) -> None:
        """Add the files below nbd and ploop devices, and the devices these lie on."""
        for device in [one for one in devices.values() if one.kind in {"nbd", "ploop"}]:
            backing = self._images.served(device)
            devices[device.devno] = replace(device, backing=backing)
            if backing.image_devno is not None and backing.image_devno not in devices:
                devices.update(self._stack.read([backing.image_devno], images))

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

    def _superblocks(
        self, places: dict[Devno, list[NamespaceMount]], devices: dict[Devno, BlockDevice]
    ) -> dict[Devno, Superblock]:
        superblocks: dict[Devno, Superblock] = {}
        for devno, mounted in places.items():
            device = devices.get(devno)
            superblock = Superblock(
                devno=devno,
                fstype=mounted[0].mount.fstype,
                device=device.name if device else mounted[0].mount.source,
                disk_sequence=device.disk_sequence if device else None,
                mounts=tuple(mounted),
                backing=device.backing if device else Backing(kind="device"),
            )
            known = self.view.superblocks.get(devno)
            if known is not None and _same_superblock(known, superblock):
                superblock = replace(
                    superblock,
                    uuid=known.uuid,
                    fsid=known.fsid,
                    members=known.members,
                    mmp=known.mmp,
                )
                if superblock == known:
                    superblock = known  # so that the same is seen to be the same at no cost
            superblocks[devno] = superblock
        return superblocks

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
            with suppress(OSError, mountinfo.MountinfoError):
                seen = frozenset(mount.mount_id for mount in mountinfo.read(pid))
                if seen and proc.mount_namespace_inode(pid) == key:
                    found[key] = reach.unreached(table.get(key, ()), covered, seen)
        return found


def _by_device(
    table: MountTable, unreached: dict[NamespaceKey, frozenset[int]]
) -> dict[Devno, list[NamespaceMount]]:
    places: dict[Devno, list[NamespaceMount]] = {}
    hidden: list[NamespaceMount] = []
    for namespace, found in table.items():
        out_of_reach = unreached.get(namespace, frozenset())
        for mount in found:
            if mount.mount_id in out_of_reach:
                hidden.append(NamespaceMount(namespace=namespace, mount=mount, unreached=True))
                continue
            place = NamespaceMount(namespace=namespace, mount=mount)
            places.setdefault(mount.devno, []).append(place)
    for place in hidden:
        others = places.setdefault(place.mount.devno, [])
        if not any(reach.goes_with(place.mount, other.mount) for other in others):
            others.append(place)
    return places


async def _mmp(superblock: Superblock) -> bool:
    if not superblock.fstype.startswith("ext"):
        return False
    try:
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            return await asyncio.to_thread(extfs.has_mmp, f"/dev/{superblock.device}")
    except (OSError, TimeoutError):
        return False  # a repair asks again


def _same_superblock(old: Superblock | None, new: Superblock | None) -> bool:
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


def _images(ves: dict[VeId, Ve], key_of: Callable[[str], Key | None]) -> Images:
    found: dict[tuple[Devno, int], tuple[VeId, str]] = {}
    for ve in ves.values():
        for volume in ve.volumes:
            key = key_of(volume.image) if volume.image else None
            if key is not None and volume.image:
                found[key] = (ve.ve_id, volume.image)
    return found


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
