"""Logical volumes of LVM as what volumes lie in.

Of a thin one the clone is a snapshot, which shares its blocks. A snapshot freezes the filesystem
that is mounted, which one that the kernel has aborted refuses: the clone that takes the volume's
place is made when nothing has it mounted any more.

Of a plain one it is a copy: of what is on the disk, also while the filesystem is mounted, as long
as nothing can write to it. It is read past the kernel's memory, which may hold more than that.

LVM renames, it does not exchange. Between its two renames the volume's name leads nowhere: nobody
can start the VE on either of them. Both are held open for that long (O_EXCL), so that nobody mounts
one of them either.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.kernel import block, dm
from fswatchd.repair import logical_volume, lvm, scratch
from fswatchd.repair.clone import NotShareableError
from fswatchd.repair.logical_volume import LogicalVolume, Stamp
from fswatchd.repair.progress import OnProgress
from fswatchd.repair.swap import HalfSwappedError, StaleError, SwapError
from fswatchd.repair.volume import Volume
from fswatchd.shielded import to_the_end
from fswatchd.steps import ActionSettings, refuse
from fswatchd.units import show_size

TAG = "fswatchd-clone"
"""On a clone of ours until it takes a volume's place; no original ever has it."""
_INSTEAD = 'use strategy = "offline"'
_LONGEST_SUFFIX = len(".fswatchd--preview--20261122--abcdefgh--999")
_NAMES_TRIED = 1000
_EXCLUSIVE_TRIES = 50
_PAUSE_S = 0.1
_COPY_TIMEOUT_S = 24 * 3600.0
_LOOK_EVERY_S = 0.5
_NEVER_USED_UP = 1 << 62


class LvmStorage:
    """See `storage.Storage`."""

    def __init__(self, volume: LogicalVolume, settings: ActionSettings) -> None:
        self._volume = volume
        self._settings = settings

    @property
    def live(self) -> bool:
        """See Storage."""
        return self._volume.pool is None

    @property
    def renews(self) -> bool:
        """See Storage: what was read of a device is forgotten with the last who has it open."""
        return False

    @property
    def place(self) -> str:
        """The thin pool, as LVM calls it, or the volume group."""
        parts = dm.split(self._volume.pool or "")
        return "/".join((self._volume.group, *(part for part in parts[1:2] if part)))

    async def prepare(self) -> None:
        """See Storage."""
        volume = self._volume
        row = await lvm.show(volume.path)
        if row is None or not row.is_(volume):
            raise refuse("refused", f"{volume.path} is another volume for LVM than for the kernel")
        if (unfit := row.unfit) is not None:
            raise refuse("refused", f"{unfit}; {_INSTEAD}")
        if row.is_thin and volume.pool is None:
            text = f"{volume.path} rests on more than its thin pool; {_INSTEAD}"
            raise refuse("refused", text)
        if len(logical_volume.device_name(volume.path)) + _LONGEST_SUFFIX > dm.MAX_NAME:
            raise refuse("refused", f"{volume.path}: no longer name has room for a clone's")
        if volume.stamp() is None:
            text = (
                f"nobody counts what is written to {volume.path}: whether a clone is stale could "
                f"not be told; write 1 to /sys/block/{volume.node[5:]}/queue/iostats"
            )
            raise refuse("refused", text)
        await self.check_room(shared=row.is_thin)

    async def wake(self, *paths: str | None) -> None:
        """Activate them, and give a device the name that LVM has written down for it."""
        for path in dict.fromkeys((self._volume.path, *paths)):
            row = await lvm.show(path) if path is not None else None
            if path is None or row is None:
                continue
            devno = dm.find("uuid", row.device_uuid)
            if devno is None:
                await lvm.activate(path)
            elif dm.is_suspended(devno) or block.attribute(
                devno, "dm/name"
            ) != logical_volume.device_name(path):
                await lvm.refresh(path)

    async def mend(self, away: str | None) -> None:
        """See Storage."""
        volume = self._volume
        if away is None or not volume.is_at(away) or await lvm.show(volume.path) is not None:
            return
        await lvm.rename(away, volume.path)

    async def check_room(self, *, shared: bool) -> None:
        """See Storage."""
        if shared and (room := await self.room()) < 0:
            share, least = self._settings.reserve_share, self._settings.reserve_bytes
            text = (
                f"no room for a clone: the data or metadata of the thin pool {self.place} has "
                f"{show_size(-room)} less than the reserve ({share:.0%}, at least "
                f"{show_size(least)})"
            )
            raise refuse("no room", text)
        if not shared:
            free, all_of_it = await lvm.group_bytes(self._volume.group)
            share, least = self._settings.reserve_share, self._settings.reserve_bytes
            reserve = max(int(all_of_it * share), least)
            if free < self._size() + reserve:
                text = (
                    f"no room for a clone: {show_size(free)} are free in the volume group "
                    f"{self._volume.group}, {show_size(self._size() + reserve)} are needed "
                    f"({show_size(reserve)} of them as a reserve)"
                )
                raise refuse("no room", text)

    async def room(self) -> int:
        """See Storage. Metadata of a pool counts by its share of it.

        What a plain volume has it keeps; LVM would be slow to ask again and again.
        """
        name = self._volume.pool
        if name is None:
            return _NEVER_USED_UP
        pool = await lvm.pool(name)
        if pool is None or pool.broken or pool.mode != "rw":
            state = (pool.broken or f"in mode {pool.mode}") if pool else "not to be found"
            raise OSError(errno.EIO, f"the thin pool of {self._volume.path} is {state}")
        share, size = self._settings.reserve_share, pool.size_bytes
        data = size * (1 - pool.data_percent / 100) - max(
            size * share, self._settings.reserve_bytes
        )
        metadata = size * (1 - pool.metadata_percent / 100 - share)
        return int(min(data, metadata))

    def bytes_to_copy(self) -> int:
        """See Storage: of a snapshot nothing."""
        return self._size() if self._volume.pool is None else 0

    async def free_name(self, path: str) -> str:
        """See Storage."""
        taken = await lvm.names(self._volume.group)
        names = (path, *(f"{path}-{number}" for number in range(2, _NAMES_TRIED)))
        return next((one for one in names if logical_volume.name(one) not in taken), path)

    async def share(self, path: str) -> LogicalVolume:
        """See Storage. Whose tags it has tells platforms whose it is: they are kept."""
        row = await self._row()
        if not row.is_thin:
            text = "a plain volume shares no blocks"
            raise NotShareableError(errno.EOPNOTSUPP, text, self._volume.path)
        try:
            await lvm.snapshot(self._volume.path, path, (TAG, *row.tags))
        except OSError as error:
            await self._go_on()
            if await asyncio.to_thread(self._volume.holder) is None:
                raise
            text = f"LVM makes no snapshot of it while it is mounted: {error.strerror}"
            raise NotShareableError(errno.EBUSY, text, self._volume.path) from None
        return self._made(path)

    async def make(
        self, path: str, begin: Callable[[], OnProgress], earlier: Volume | None = None
    ) -> LogicalVolume:
        """See Storage."""
        if earlier is not None:
            await self.discard(earlier)
        row = await self._row()
        await self.check_room(shared=row.is_thin)
        if row.is_thin:
            return await self.share(path)
        on_disks = await lvm.disks(self._volume.path)
        try:
            await lvm.create(path, self._size(), (TAG, *row.tags), on_disks)
            made = self._made(path)
            await _copy(self._volume, made, begin())
        except BaseException:
            with suppress(OSError):  # what has failed is for the caller to hear of
                await self.discard_unfinished(path)
            raise
        return made

    def _made(self, path: str) -> LogicalVolume:
        made = LogicalVolume.at(path)
        if made is None or made.uuid == self._volume.uuid:
            raise OSError(errno.EIO, "LVM has made it, and it is not there", path)
        return made

    async def _row(self) -> lvm.Row:
        row = await lvm.show(self._volume.path)
        if row is None or not row.is_(self._volume):
            raise OSError(errno.ESTALE, "it is another volume now", self._volume.path)
        return row

    def _size(self) -> int:
        return (block.sectors(_devno(self._volume)) or 0) * 512

    @asynccontextmanager
    async def at_work(self, made: Volume) -> AsyncIterator[str]:
        """A loop device on the clone, which is held with O_EXCL for as long.

        Tools that open a device so themselves would otherwise be refused by our own hold.
        """
        volume = _logical(made)
        base = await _opened(volume, os.O_RDWR)
        try:
            async with scratch.attached_file(base) as device:
                yield device
            await asyncio.to_thread(os.fsync, base)
        finally:
            os.close(base)

    async def sync(self, made: Volume) -> None:
        """See Storage."""
        await asyncio.to_thread(block.sync, _logical(made).node)

    async def discard(self, made: Volume) -> None:
        """See Storage."""
        volume = _logical(made)
        row = await lvm.show(volume.path)
        if row is not None and row.is_(volume) and volume.uuid != self._volume.uuid:
            await lvm.remove(volume)

    async def discard_unfinished(self, path: str) -> None:
        """See Storage. What is ours has our tag: it is written with the volume itself."""
        row = await lvm.show(path)
        if row is not None and TAG in row.tags:
            await self.discard(LogicalVolume(path=path, uuid=row.device_uuid))

    async def delete(self) -> None:
        """See Storage."""
        await lvm.remove(self._volume)
        row = await lvm.show(self._volume.path)
        if row is not None and row.is_(self._volume):
            raise OSError(errno.EBUSY, "somebody has made snapshots of it", self._volume.path)

    async def exchange(self, made: Volume, kept: str, stamp: Stamp | None = None) -> None:
        """See Storage: the volume is at `kept` afterwards.

        Cancelled, it comes to its end first: between the renames the name leads nowhere.
        """
        await to_the_end(self._exchange(made, kept, stamp))

    async def _exchange(self, made: Volume, kept: str, stamp: Stamp | None) -> None:
        volume, other = self._volume, _logical(made)
        try:
            is_clone = await self._untag(other)
            with _nobody_else(volume, other):
                if is_clone:
                    await self._require_fit(other)
                if stamp is not None and not volume.is_unchanged(stamp):
                    raise StaleError(f"{volume.path} was written to since it was cloned")
                await lvm.rename(volume.path, kept)
                try:
                    await lvm.rename(other.path, volume.path)
                except OSError as error:
                    await self._take_back(kept, error)
                    raise
        except OSError as error:
            raise SwapError(f"cannot exchange {volume.path} and {other.path}: {error}") from None
        if not other.is_at(volume.path) or not volume.is_at(kept):
            text = (
                f"LVM has exchanged {volume.path} and {other.path}, and the kernel has not: for "
                f"LVM what was {volume.path} is {kept} now; see lvs(8) and dmsetup(8)"
            )
            raise HalfSwappedError(text)

    async def _take_back(self, kept: str, why: OSError) -> None:
        """The volume gets its name again. Raises HalfSwappedError where it cannot."""
        path = self._volume.path
        try:
            await lvm.rename(kept, path)
        except OSError as error:
            text = f"nothing is {path} now, what was it is {kept}: {why}; then {error}"
            raise HalfSwappedError(text) from None

    async def keep(self, beside: str, kept: str) -> str:
        """See Storage."""
        return kept if self._volume.is_at(kept) else beside

    async def _require_fit(self, other: LogicalVolume) -> None:
        """What somebody has done to the volume since it was cloned. Raises OSError."""
        if (unfit := (await self._row()).unfit) is not None:
            raise OSError(errno.EBUSY, unfit, self._volume.path)
        if block.sectors(_devno(other)) != block.sectors(_devno(self._volume)):
            raise OSError(errno.ESTALE, "it has another size than its clone", self._volume.path)

    async def _untag(self, made: LogicalVolume) -> bool:
        """Whether it was a clone of ours until now; an original that comes back never is."""
        row = await lvm.show(made.path)
        if row is None or not row.is_(made) or TAG not in row.tags:
            return False
        await lvm.untag(made.path, TAG)
        return True

    async def _go_on(self) -> None:
        """LVM that was ended half-way may have left the volume suspended."""
        devno = self._volume.devno
        if devno is not None and dm.is_suspended(devno):
            name = block.attribute(devno, "dm/name")
            if name is not None:
                await lvm.resume(name)


def _logical(volume: Volume) -> LogicalVolume:
    if not isinstance(volume, LogicalVolume):
        raise TypeError(f"not a logical volume: {volume}")
    return volume


def _devno(volume: LogicalVolume) -> Devno:
    if (devno := volume.devno) is None:
        raise FileNotFoundError(errno.ENOENT, "it is not active", volume.path)
    return devno


async def _copy(source: LogicalVolume, target: LogicalVolume, on_progress: OnProgress) -> None:
    """Copy all of a volume to another one of its size. Raises OSError."""
    fds = [_open(source, os.O_RDONLY)]
    try:
        fds.append(await _opened(target, os.O_WRONLY))
        inner, outer = (f"/proc/self/fd/{fd}" for fd in fds)
        argv = ("dd", f"if={inner}", f"of={outer}", "bs=4M", "iflag=direct", "oflag=direct")
        watching = asyncio.create_task(_watch(source, target, on_progress))
        try:
            done = await process.run(argv, timeout_s=_COPY_TIMEOUT_S, heavy=True, pass_fds=fds)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not done.succeeded:
            raise OSError(errno.EIO, done.describe(), target.path)
        await asyncio.to_thread(block.sync, target.node)
    finally:
        for fd in fds:
            os.close(fd)


async def _watch(source: LogicalVolume, target: LogicalVolume, on_progress: OnProgress) -> None:
    """Tell how much of the volume the copy has: its device has got nothing else."""
    whole, copy = source.devno, target.devno
    size = block.sectors(whole) if whole is not None else None
    while size and copy is not None:
        await asyncio.sleep(_LOOK_EVERY_S)
        on_progress(min((block.sectors_written(copy) or 0) / size, 1.0))


@contextmanager
def _nobody_else(*volumes: LogicalVolume) -> Iterator[None]:
    """Hold them, so that nobody can mount one; raises OSError where somebody has."""
    held: list[int] = []
    try:
        for volume in volumes:
            if not volume.is_at(volume.path):
                raise OSError(errno.ESTALE, "it is another volume now", volume.path)
            held.append(_hold(volume, os.O_RDONLY))
        yield
    finally:
        for fd in held:
            os.close(fd)


def _hold(volume: LogicalVolume, flags: int) -> int:
    """Its device, open with O_EXCL, proven to be it. Raises OSError."""
    return _open(volume, flags | os.O_EXCL)


def _open(volume: LogicalVolume, flags: int) -> int:
    fd = os.open(volume.node, flags | os.O_CLOEXEC)
    found = block.attribute(Devno.of(os.fstat(fd).st_rdev), "dm/uuid")
    if found != volume.uuid:
        os.close(fd)
        raise OSError(errno.ESTALE, "it is another volume now", volume.path)
    return fd


async def _opened(volume: LogicalVolume, flags: int) -> int:
    """The same; who only looks at a device that has just appeared is waited for."""
    for _ in range(_EXCLUSIVE_TRIES):
        try:
            return _hold(volume, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        await asyncio.sleep(_PAUSE_S)
    return _hold(volume, flags)
