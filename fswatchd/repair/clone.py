"""Copy an image: by sharing its blocks (reflink) where the host filesystem can, else sparsely.

A clone of a filesystem that is still written is good for a preview and for nothing else. It is
created with O_EXCL under a name of ours beside the image, so that exchanging the two is a rename.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.kernel import extents, fs, lease
from fswatchd.kernel.patience import Patience
from fswatchd.kernel.syscalls import AT_FDCWD, RENAME_NOREPLACE, renameat2
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.shielded import ended, to_the_end
from fswatchd.steps import ActionSettings, refuse
from fswatchd.units import show_size

_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}
_COPY_TIMEOUT_S = 24 * 3600.0
_LOOK_EVERY_S = 0.5
# Of what a file holds, and of what it is: nobody else's to set.
_MADE_BY_THE_KERNEL = {"security.evm", "security.ima"}
_PATIENCE_S = 5.0
_MOST_RANGES = 4096
_patience = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A copy of an image that is ours."""

    file: ImageFile
    shared: bool

    def remove(self) -> None:
        """Delete it, if what stands at its path is still it."""
        if self.file.is_at(self.file.path):
            with suppress(FileNotFoundError):
                os.unlink(self.file.path)


def clone_path(volume: Volume, incident_id: str, kind: str) -> str:
    """Where the clone of `kind` (`preview`, `clone`) for an incident is: beside the volume."""
    return f"{volume.path}.fswatchd-{kind}-{incident_id}"


async def check_room(image: ImageFile, settings: ActionSettings, *, shared: bool) -> None:
    """Raise StepEnded where a clone would leave less than the reserve on the host filesystem.

    A shared clone takes no room at first, but every block that is then written takes one, also
    those that the VE overwrites in the original: below the reserve its own writes could fail.
    Raises OSError where the filesystem does not answer.
    """
    free, reserve = await asyncio.to_thread(_free_and_reserve, image.directory, settings)
    needed = reserve if shared else reserve + os.stat(image.path).st_blocks * 512
    if free < needed:
        raise refuse(
            "no room",
            f"no room for a clone: {show_size(free)} are free below {image.directory}, "
            f"{show_size(needed)} are needed ({show_size(reserve)} of them as a reserve)",
        )


def room(directory: str, settings: ActionSettings) -> int:
    """Bytes that may be written in a directory before the reserve is touched; negative below.

    Raises OSError, which is TimeoutError where the filesystem does not answer; blocks meanwhile.
    """
    free, reserve = _free_and_reserve(directory, settings)
    return free - reserve


def _free_and_reserve(directory: str, settings: ActionSettings) -> tuple[int, int]:
    room = _patience.ask(directory, lambda: os.statvfs(directory), _PATIENCE_S)
    reserve = max(
        int(room.f_blocks * room.f_frsize * settings.reserve_share), settings.reserve_bytes
    )
    return room.f_bavail * room.f_frsize, reserve


class NotShareableError(OSError):
    """No clone can be made that shares its blocks: of no image there, or of a volume not now."""


async def share(image: ImageFile, path: str) -> Clone:
    """Clone by sharing all blocks. Raises NotShareableError, or OSError.

    Leaves nothing then, and where it is cancelled.
    """
    return await _to_its_end(_share, image, path)


async def renew(image: ImageFile, earlier: ImageFile, path: str) -> Clone:
    """Make a clone of what `image` is now, of one that was made before and worked on since.

    Only where the two differ by now blocks are shared anew. What tools have read of all the rest is
    still in memory then: on a slow disk who waits for them waits a fraction of the time. Raises
    OSError where it cannot be proven to be the same as the image afterwards. The earlier clone is
    gone then, and where it is cancelled.
    """
    return await _to_its_end(_renew, image, earlier, path)


async def copy(
    image: ImageFile, path: str, on_progress: Callable[[float], None] | None = None
) -> Clone:
    """Clone by copying what is not a hole; only of what stands still. Raises OSError."""
    with opened(image) as source, _created(path) as target:
        # cp finds holes by SEEK_HOLE, and is a process that can be ended.
        argv = (
            "cp",
            "--sparse=always",
            "--reflink=never",
            "--no-target-directory",
            f"/proc/self/fd/{source}",
            f"/proc/self/fd/{target}",
        )
        watching = asyncio.create_task(_watch(source, target, on_progress))
        try:
            done = await process.run(
                argv, timeout_s=_COPY_TIMEOUT_S, heavy=True, pass_fds=(source, target)
            )
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not done.succeeded:
            raise OSError(errno.EIO, done.describe(), path)
        # Who is cancelled does not end the thread: it needs its descriptors until it is done.
        await to_the_end(asyncio.to_thread(_settle, source, target))
        return _finished(target, path, shared=False)


async def _watch(source: int, target: int, on_progress: Callable[[float], None] | None) -> None:
    """Tell how much of the image's blocks the copy has."""
    while on_progress is not None:
        await asyncio.sleep(_LOOK_EVERY_S)
        on_progress(os.fstat(target).st_blocks / max(os.fstat(source).st_blocks, 1))


async def _to_its_end(make: Callable[..., Clone], *arguments: object) -> Clone:
    """What `make` makes in a thread; deleted again where nobody waits for it any more."""
    making = asyncio.create_task(asyncio.to_thread(make, *arguments))
    try:
        await ended(making)
    except asyncio.CancelledError:
        if making.exception() is None:
            making.result().remove()
        raise
    return making.result()


def _share(image: ImageFile, path: str) -> Clone:
    with opened(image) as source, _created(path) as target:
        try:
            fs.reflink(source, target)
        except OSError as error:
            if error.errno in _NO_REFLINK:
                raise NotShareableError(error.errno, error.strerror, path) from None
            raise
        _settle(source, target)
        return _finished(target, path, shared=True)


def _renew(image: ImageFile, earlier: ImageFile, path: str) -> Clone:
    try:
        with opened(image) as source, opened(earlier, os.O_RDWR) as target:
            if not lease.is_only_writer(target):
                raise OSError(errno.EBUSY, "something may still write to it", earlier.path)
            renameat2(AT_FDCWD, earlier.path, path, RENAME_NOREPLACE)
            if not extents.tells(path):
                raise OSError(errno.EOPNOTSUPP, "the filesystem does not tell what differs", path)
            for start, end in _differing(source, target):
                fs.reflink_range(source, target, start, end)
            if _differing(source, target):
                raise OSError(errno.ESTALE, "it does not become the same as the image", path)
            _settle(source, target)
            return _finished(target, path, shared=True)
    except BaseException:
        for place in (earlier.path, path):
            discard(replace(earlier, path=place))
        raise


def _differing(source: int, target: int) -> list[tuple[int, int]]:
    size = os.fstat(source).st_size
    if os.fstat(target).st_size != size:
        raise OSError(errno.ESTALE, "the image has another size now")
    image = extents.of(source)
    if any(extent.place is None and extent.start < size for extent in image):
        raise OSError(errno.EOPNOTSUPP, "parts of the image lie nowhere (compressed?)")
    # Writers wait: where there is so much to do, all of it at once takes less.
    ranges = list(islice(extents.not_shared(image, extents.of(target), size), _MOST_RANGES + 1))
    if len(ranges) > _MOST_RANGES:
        raise OSError(errno.EFBIG, "too much of it differs by now")
    return ranges


def discard(file: ImageFile) -> None:
    """Delete the clone that an earlier run has left, if what stands at its path is still it.

    After an exchange the clone's path leads to the only original.
    """
    Clone(file=file, shared=False).remove()


def discard_unfinished(path: str) -> None:
    """Delete what is at `path`: only for names under which an original can never be."""
    with suppress(OSError):
        discard(ImageFile.at(path))


def sync(path: str) -> None:
    """Return when the clone is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _settle(source: int, target: int) -> None:
    _dress(source, target)
    os.fsync(target)


def _dress(source: int, target: int) -> None:
    """Give the clone the image's owner, mode and extended attributes (labels among them).

    Raises OSError where one cannot be kept: without its label a VE may not get at its own image.
    """
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if name not in _MADE_BY_THE_KERNEL:
                what = f"cannot keep {name}: {error.strerror}"
                raise OSError(error.errno, what) from None


def dress(made: ImageFile, *, like: ImageFile) -> None:
    """Give a clone of something else the owner, mode and attributes of the image that it is to take
    the place of. Raises OSError."""
    with opened(like) as source, opened(made) as target:
        _dress(source, target)


def _finished(fd: int, path: str, *, shared: bool) -> Clone:
    file = ImageFile.at(path)
    if file.inode != os.fstat(fd).st_ino:
        raise OSError(errno.ESTALE, "it is another file now", path)
    return Clone(file=file, shared=shared)


@contextmanager
def opened(image: ImageFile, mode: int = os.O_RDONLY) -> Iterator[int]:
    """The image open for reading, or in another `mode`, proven to be the inode decided on."""
    fd = os.open(image.path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if (Devno.of(status.st_dev), status.st_ino) != (image.devno, image.inode):
            raise OSError(errno.ESTALE, "it is another file now", image.path)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _created(path: str) -> Iterator[int]:
    """A new file of ours, for root only until it is dressed; deleted when the block fails."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
