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
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fswatchd.devno import Devno
from fswatchd.events import printable
from fswatchd.helpers.client import Helper, HelperError
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import (
    NamespaceKey,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.names import as_known
from fswatchd.inventory.owners import Unclaimed
from fswatchd.inventory.platform import Platform, PlatformError
from fswatchd.inventory.reader import NamespaceSeen, NodeReader, on_its_device, same_superblock
from fswatchd.inventory.scan import (
    MountScanner,
    best_scanner,
    namespace_of_process,
    open_namespace,
)
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block, extfs, fs, mounts
from fswatchd.kernel.patience import Patience

log = logging.getLogger(__name__)

_Read = TypeVar("_Read")

_OPEN_TIMEOUT_S = 3.0
_patience = Patience()
_MAX_HANGS = 2
_RETRY_BUDGET_S = 0.3
_RETRY_AT_ONCE = 4
_CLOSED_TOGETHER = 16
_ERROR_SHOWN = 300
_UNKNOWN = "not known"
_HELPER = "fswatchd.helpers.mounts"

NewSuperblock = Callable[[Superblock, int], None]
VanishedSuperblock = Callable[[Superblock], None]
# What runs here that is none of these VEs and should be one, None where nothing does.
Unlisted = Callable[[Iterable[Ve]], str | None]


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


class _Leaving:
    """Closes descriptors on detached mounts, some at a time, in a thread.

    The kernel waits at each for all processors to have seen that the mount is gone: at the first
    look at a thousand filesystems that is a good part of a second.
    """

    def __init__(self) -> None:
        self._left: list[int] = []
        self._closing: list[asyncio.Future[None]] = []

    def leave(self, fd: int) -> None:
        """Close it soon."""
        self._left.append(fd)
        if len(self._left) >= _CLOSED_TOGETHER:
            self._close()

    async def all_left(self) -> None:
        """Close what is left, and wait until all is closed."""
        if self._left:
            self._close()
        closing, self._closing = self._closing, []
        await asyncio.gather(*closing)

    def _close(self) -> None:
        fds, self._left = self._left, []
        self._closing.append(asyncio.get_running_loop().run_in_executor(None, _close_all, fds))


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class Inventory:
    """The live picture. One per daemon; used from the event loop only."""

    def __init__(
        self,
        platforms: Iterable[Platform],
        scanner: MountScanner | None = None,
        unclaimed: Unclaimed | None = None,
        own_paths: Iterable[str] = (),
        unlisted: Unlisted = lambda _: None,
    ) -> None:
        self.platforms = list(platforms)
        self._unlisted = unlisted
        self.view = NodeView()
        self.problems: dict[str, str] = {}
        # Those of them that nobody has thought of: their traceback is logged once.
        self._unexpected: set[str] = set()
        # What the daemon itself does with a VE, its platform cannot know.
        self.adjust: list[Callable[[Ve], Ve]] = []
        # Called after each refresh with what went wrong, empty where nothing did.
        self.on_refreshed: Callable[[str], None] = lambda _: None
        self._helper = Helper(_HELPER)
        self._lock = asyncio.Lock()
        self._on_superblock: list[NewSuperblock] = []
        self._on_vanished: list[VanishedSuperblock] = []
        self._on_namespace: list[NamespaceSeen] = []
        self._reader = NodeReader(
            scanner or best_scanner(), self._namespace_seen, unclaimed, own_paths
        )
        # Its own: whatever fills the pool with what hangs, the node is still looked at.
        self._thread = ThreadPoolExecutor(1, "inventory")
        self._leaving = _Leaving()
        # Seen, and no subscriber was told yet: the refresh that saw them may have failed, or nobody
        # waited for its end.
        self._unannounced: set[Devno] = set()
        self._failed = False
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

    @property
    def scanner(self) -> MountScanner:
        """How mounts are found on this kernel."""
        return self._reader.scanner

    async def close(self) -> None:
        """End the helper; looks that others still ask for as they end go on."""
        await self._helper.close(kill=True)

    # --- questions ----------------------------------------------------------------------------

    def superblock_of_name(self, device: str) -> Superblock | None:
        """The mounted filesystem on the device that a kernel message names."""
        devno = block.devno_of(device)
        return self.view.superblock_on(devno) if devno else None

    def current_options(self, superblock: Superblock) -> tuple[str, ...] | None:
        """The superblock's options at this moment; None when it is no longer mounted."""
        superblock = self._as_mounted_now(superblock)
        for place in superblock.mounts:
            mount = self.scanner.current(place.namespace, place.mount)
            if mount is not None and mount.devno == superblock.devno:
                return replace(superblock, mounts=(replace(place, mount=mount),)).options
        return None

    def at_once(self) -> AbstractContextManager[None]:
        """Around many questions for `current_options` that nothing else comes between."""
        return self.scanner.at_once()

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

        async with self.opened(superblock) as fd:
            name = f"transactions of {superblock.devno}"
            return await _patience.answer(name, lambda: ask(fd), _OPEN_TIMEOUT_S)

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
            try:
                changes = await self._refresh(forget=forget)
            except Exception as error:
                self._failed = True
                self.on_refreshed(printable(str(error), _ERROR_SHOWN) or type(error).__name__)
                raise
            self._failed = False
            self.on_refreshed(self._reader.unread())
            return changes

    async def _refresh(self, *, forget: bool) -> Changes:
        if forget:
            self._reader.forget()
        ves = await self._list_ves()
        view = await self._in_thread(self._reader.read, ves, self.view)
        before = self.view
        self.view = view
        appeared = [
            found
            for devno, found in view.superblocks.items()
            if not same_superblock(before.superblocks.get(devno), found)
            or devno in self._unannounced
        ]
        self._unannounced = {found.devno for found in appeared}
        for devno in self._unreached.keys() - view.superblocks.keys():
            del self._unreached[devno]
        to_retry = self._to_retry(appeared, before)
        vanished = [
            old
            for devno, old in before.superblocks.items()
            if not same_superblock(old, view.superblocks.get(devno))
        ]
        for superblock in vanished:
            for callback in self._on_vanished:
                callback(superblock)
        mmp = await _all_mmp(appeared) if appeared else {}
        try:
            identified = [
                await self._identify(found, mmp=mmp.get(found.devno)) for found in appeared
            ]
            until = time.monotonic() + _RETRY_BUDGET_S
            identified += [
                await self._identify(found) for found in to_retry if time.monotonic() < until
            ]
        finally:
            await self._leaving.all_left()
        return Changes(appeared=tuple(identified), vanished=tuple(vanished))

    async def _in_thread(self, read: Callable[..., _Read], *args: object) -> _Read:
        """Where nobody waits any more the thread goes on, and the next look not beside it."""
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._thread, read, *args)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.wait([reading])
            raise

    async def announce(self, superblock: Superblock) -> bool:
        """Find out again what is mounted there, and hand it to the subscribers.

        False when it cannot be reached: it counts as unreached then, and refreshes try it again.
        """
        async with self._lock:
            known = self.view.superblocks.get(superblock.devno)
            if known is None:
                return False
            try:
                await self._identify(known, mmp=known.mmp)
            finally:
                await self._leaving.all_left()
            return known.devno not in self._unreached

    async def _list_ves(self) -> dict[VeId, Ve]:
        found: list[Ve] = []
        for platform in self.platforms:
            try:
                found += await platform.list_ves()
                self._note(platform.name, None)
            except PlatformError as error:
                found += error.partial
                self._note(platform.name, error)
            except Exception as error:  # a task border: the others' VEs are not lost
                if isinstance(error, OSError) and mounts.is_shortage(error):
                    raise  # says nothing of the platform: what was known of it stays
                self._note(platform.name, error)
        self._look_for_unlisted(found)
        ves = merged(map(as_known, found))
        for adjusted in self.adjust:
            ves = {ve_id: adjusted(ve) for ve_id, ve in ves.items()}
        return ves

    def _look_for_unlisted(self, listed: list[Ve]) -> None:
        try:
            told = self._unlisted(listed)
            self._note(_UNKNOWN, PlatformError(told) if told else None)
        except Exception as error:  # noqa: BLE001  a task border, as for the VEs
            self._note(_UNKNOWN, error)

    def watch_directories(self) -> set[str]:
        """Where VEs and their configurations come and go, of all platforms."""
        found: set[str] = set()
        for platform in self.platforms:
            what = f"{platform.name} directories"
            try:
                found.update(platform.watch_directories())
                self._note(what, None)
            except Exception as error:  # noqa: BLE001  a task border, as for the VEs
                self._note(what, error)
        return found

    def _note(self, what: str, error: Exception | None) -> None:
        """Keep what is wrong with a platform, None where nothing is."""
        text = printable(f"{what} cannot be read: {error!r}", _ERROR_SHOWN)
        if error is None or isinstance(error, PlatformError):
            self._unexpected.discard(what)
        elif what not in self._unexpected:
            self._unexpected.add(what)
            trace = None if isinstance(error, OSError) else error
            log.error("the platform %s", text, exc_info=trace)
        if error is None:
            self.problems.pop(what, None)
        elif isinstance(error, PlatformError):
            self.problems[what] = str(error)
        else:
            self.problems[what] = text

    def unreached(self) -> list[str]:
        """The devices of mounted filesystems of which no descriptor could be got."""
        superblocks = self.view.superblocks
        return sorted(superblocks[d].device for d in self._unreached if d in superblocks)

    def is_behind(self) -> bool:
        """Whether the last refresh has failed, or there are filesystems that nobody was told of (or
        they are being told of now)."""
        return self._failed or bool(self._unannounced)

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

    async def _identify(self, superblock: Superblock, *, mmp: bool | None = None) -> Superblock:
        devno = superblock.devno
        try:
            superblock = await self._handed_on(superblock, mmp=mmp)
        except (OSError, HelperError) as error:
            failed = self._unreached.get(devno)
            if failed is None:
                log.warning("cannot reach the filesystem on %s: %s", superblock.device, error)
            self._unreached[devno] = _Unreached.after(failed)
        else:
            self._unreached.pop(devno, None)
        self._unannounced.discard(devno)
        return superblock

    async def _handed_on(self, superblock: Superblock, *, mmp: bool | None) -> Superblock:
        """Find out what it is, and tell the subscribers of it; raises as `opened`."""
        fd, answer = await self._open(superblock)
        known = superblock
        try:
            fsid, uuid = answer.get("fsid"), answer.get("uuid")
            members = block.btrfs_members(uuid) if uuid and superblock.fstype == "btrfs" else ()
            superblock = replace(
                superblock,
                uuid=uuid,
                members=members,
                fsid=bytes.fromhex(fsid) if fsid else None,
                mmp=await _mmp(superblock) if mmp is None else mmp,
            )
            devices = await self._in_thread(self._reader.devices, members) if members else {}
            superblock = on_its_device(superblock, devices)
            self.view = self.view.identified(superblock, devices)
            if known.fsid not in {None, superblock.fsid}:
                # Made anew (mkfs) and mounted with the same numbers between two looks.
                for gone in self._on_vanished:
                    gone(known)
            for callback in self._on_superblock:
                callback(superblock, fd)
        finally:
            self._leaving.leave(fd)
        return superblock

    async def _open(self, superblock: Superblock) -> tuple[int, dict[str, Any]]:
        superblock = self._as_mounted_now(superblock)
        failures: list[Exception] = []
        hangs = 0
        places = sorted(
            superblock.mounts, key=lambda place: (place.unreached, place.mount.root != "/")
        )
        for place in places[:8]:
            pid = self._pid_in(place.namespace)
            ns_fd = namespace_of_process(place.namespace, pid)
            if ns_fd is None:
                try:
                    ns_fd = await asyncio.to_thread(open_namespace, place.namespace, pid)
                except OSError as error:
                    failures.append(error)
                    continue
            try:
                answer, fds = await self._helper.request(
                    {"path": place.mount.point, "devno": str(superblock.devno)},
                    (ns_fd,),
                    timeout_s=_OPEN_TIMEOUT_S,
                )
            except OSError as error:
                failures.append(error)
                continue
            except HelperError as error:
                # All VEs share the helper, and no refresh goes on meanwhile: not for long.
                await self._helper.close(kill=True)
                failures.append(error)
                hangs += 1
                if hangs == _MAX_HANGS:
                    break
                continue
            finally:
                os.close(ns_fd)
            return fds[0], answer
        # Of the best place to reach it.
        raise next(iter(failures), FileNotFoundError(2, "it is not mounted", superblock.device))

    def _as_mounted_now(self, superblock: Superblock) -> Superblock:
        """With the mounts of the last look: those of the look that has found it may all be gone by
        now, and others have come, one after the other."""
        now = self.view.superblocks.get(superblock.devno)
        if now is None or now.disk_sequence != superblock.disk_sequence:
            return superblock
        if now.uuid != superblock.uuid and None not in {now.uuid, superblock.uuid}:
            return superblock
        return replace(superblock, mounts=now.mounts)

    def _namespace_seen(self, key: NamespaceKey, fd: int) -> None:
        for callback in self._on_namespace:
            callback(key, fd)

    def _pid_in(self, namespace: NamespaceKey) -> int | None:
        owner = self.view.owners.get(namespace)
        if owner is not None and (ve := self.view.ves.get(VeId(owner))) is not None:
            return ve.init_pid
        return self._reader.process_in(namespace)


async def _all_mmp(superblocks: Iterable[Superblock]) -> dict[Devno, bool]:
    """Of many at once, which costs one thread; only the first where one does not answer."""
    answers: dict[Devno, bool] = {}

    def ask() -> None:
        for found in superblocks:
            answers[found.devno] = _read_mmp(found)

    with suppress(TimeoutError):
        await _patience.answer("mmp", ask, _OPEN_TIMEOUT_S)
    return dict(answers)


async def _mmp(superblock: Superblock) -> bool:
    try:
        name = f"mmp of {superblock.device}"
        return await _patience.answer(name, lambda: _read_mmp(superblock), _OPEN_TIMEOUT_S)
    except TimeoutError:
        return False  # a repair asks again


def _read_mmp(superblock: Superblock) -> bool:
    if not superblock.fstype.startswith("ext"):
        return False
    try:
        return extfs.has_mmp(f"/dev/{superblock.device}")
    except OSError:
        return False  # a repair asks again
