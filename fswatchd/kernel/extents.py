"""Where the blocks of a file lie, and in which ranges two files do not share them.

FIEMAP (Documentation/filesystems/fiemap.rst). Two ranges that lie in the same blocks have the same
content, whatever it is: blocks that are shared are never written in place. That holds where the
answer names a place that nothing else has: XFS (one device per file) and btrfs (one address space
over its devices), and not where files lie on several devices each of which begins at 0.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fswatchd.kernel import syscalls

FS_IOC_FIEMAP = 0xC020660B

_HEADER = struct.Struct("=QQLLLL")  # start, length, flags, mapped, room, reserved
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, flags
_SYNC = 0x1  # write what is only in memory first
_LAST = 0x1
_UNWRITTEN = 0x800
# No place yet, or one of which the bytes are not what is read: UNKNOWN, DELALLOC, ENCODED,
# DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL.
_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
_FIRST, _AT_ONCE = 16, 2048  # most files lie in one piece
_MOST = 1 << 17
_ZEROS, _NOWHERE = -1, -2  # in the place of a place
_FILESYSTEMS = {0x58465342, 0x9123683E}  # linux/magic.h: XFS and btrfs


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `end` of a file, which lie from byte `place` on; None where nobody knows."""

    start: int
    end: int
    place: int | None


def tells(path: str) -> bool:
    """Whether the filesystem of `path` names places that can be compared, see the module.

    Raises OSError.
    """
    return syscalls.filesystem_magic(path) in _FILESYSTEMS


def of(fd: int, *, sync: bool = True) -> list[Extent]:
    """The extents of an open file in order, without what reads as zeros.

    With `sync` what is only in memory is written first, else it has no place. Raises OSError:
    EOPNOTSUPP where the filesystem does not tell, EFBIG where there are too many to be worth it.
    """
    found: list[Extent] = []
    start, last, room = 0, False, _FIRST
    while not last:
        buffer = bytearray(_HEADER.size + room * _EXTENT.size)
        flags = _SYNC if sync and start == 0 else 0
        _HEADER.pack_into(buffer, 0, start, 2**64 - 1 - start, flags, 0, room, 0)
        fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        if mapped == 0:
            break
        rows = memoryview(buffer)[_HEADER.size : _HEADER.size + mapped * _EXTENT.size]
        for logical, physical, length, its in _EXTENT.iter_unpack(rows):
            start, last = logical + length, bool(its & _LAST)
            if not its & _UNWRITTEN:
                found.append(Extent(logical, start, None if its & _NO_PLACE else physical))
        room = _AT_ONCE
        if len(found) > _MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return found


def not_shared(
    one: Sequence[Extent], other: Sequence[Extent], size: int
) -> Iterator[tuple[int, int]]:
    """The ranges (start, end) of two files of `size` bytes in which they are not the same.

    The same is what lies in the same place in both, and what reads as zeros in both.
    """
    began, last = None, 0
    for start, end, same in _pieces(one, other, size):
        if same and began is not None:
            yield began, start
            began = None
        elif not same and began is None:
            began = start
        last = end
    if began is not None:
        yield began, last


def _pieces(
    one: Sequence[Extent], other: Sequence[Extent], size: int
) -> Iterator[tuple[int, int, bool]]:
    """The file in pieces (start, end, whether both are the same there), in order, to its end."""
    here, i, j = 0, 0, 0
    while here < size:
        i, left = _at(one, i, here)
        j, right = _at(other, j, here)
        end = min(size, _until(left, here), _until(right, here))
        yield here, end, _place(left, here) == _place(right, here) != _NOWHERE
        here = end


def _at(extents: Sequence[Extent], index: int, here: int) -> tuple[int, Extent | None]:
    """The first extent from `index` on that ends behind `here`, and where it is in the list."""
    while index < len(extents) and extents[index].end <= here:
        index += 1
    return index, extents[index] if index < len(extents) else None


def _until(extent: Extent | None, here: int) -> int:
    """How far it is as it is at `here`."""
    if extent is None:
        return 2**64
    return extent.start if here < extent.start else extent.end


def _place(extent: Extent | None, here: int) -> int:
    if extent is None or here < extent.start:
        return _ZEROS
    return _NOWHERE if extent.place is None else extent.place + here - extent.start
