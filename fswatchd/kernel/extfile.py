"""Regular files of an ext2, ext3 or ext4 filesystem, read from its image and not by the kernel.

For a clone, which is never mounted; the filesystem has to stand still, its journal replayed. See
Documentation/filesystems/ext4/ (group descriptors, inodes, ifork) and fs/ext4/ext4_extents.h. The
bytes are a tenant's choice: every number is checked before it is followed, and what cannot be is a
ValueError.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fswatchd.kernel import pagecache
from fswatchd.kernel.extents import Extent

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_META_BG, _64BIT = 0x10, 0x80  # EXT4_FEATURE_INCOMPAT_*
_REGULAR = 0o10
_ENCRYPTED, _EXTENTS, _INLINE_DATA = 0x800, 0x80000, 0x10000000  # EXT4_*_FL
_EXTENT_MAGIC = 0xF30A
_EXTENT_NODE = struct.Struct("<HHHH4x")  # magic, entries, room, depth
_LEAF = struct.Struct("<LHHL")  # logical block, length, place (upper 16, lower 32 bits)
_INDEX = struct.Struct("<LLH2x")  # logical block, child (lower 32, upper 16 bits)
_MOST_DEPTH = 5  # EXT4_MAX_EXTENT_DEPTH
_INITIALIZED = 32768  # EXT_INIT_MAX_LEN: what is longer was never written, and reads as zeros
_DIRECT = 12  # EXT4_NDIR_BLOCKS, then one block each of one, two, and three levels
_MOST_NODES, _MOST_EXTENTS = 1 << 14, 1 << 17
_INODE_UNINIT = 0x1  # EXT4_BG_INODE_UNINIT
_GDT_CSUM, _METADATA_CSUM = 0x10, 0x400  # EXT4_FEATURE_RO_COMPAT_*: by which that is known
# Of an inode: mode, ctime, links, generation; where it is long enough the extra size and bits.
_SHORT, _LONG = "<H10xi10xH72xL", "24xH2xL"
_READ_AT_ONCE, _HELD_AT_ONCE = 1 << 20, 1 << 12
_NO_SENSE = "its blocks make no sense"
_XATTR_MAGIC = 0xEA020000
_XATTR = struct.Struct("<BBHLL4x")  # length of the name, its index, place, inode, size of the value
_SYSTEM = 7  # EXT4_XATTR_INDEX_SYSTEM

_Piece = tuple[int, int, int]  # logical block, blocks, the first one's place


@dataclass(frozen=True, slots=True)
class File:
    """`extents` in order, their places bytes of the image; `inline` is the content without them.

    `generation` tells it from another file that had the same inode number before.
    """

    size: int
    generation: int
    extents: tuple[Extent, ...] = ()
    inline: bytes | None = None

    def read(self, image: int, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the file's end. Raises OSError."""
        end = min(start + length, self.size)
        if self.inline is not None:
            return self.inline[start:end]
        found = bytearray(max(end - start, 0))
        for extent in self._from(start):
            first, last = max(extent.start, start), min(extent.end, end)
            if extent.start >= end or extent.place is None:
                break
            piece = os.pread(image, last - first, extent.place + first - extent.start)
            found[first - start : first - start + len(piece)] = piece
        return bytes(found)

    def _from(self, start: int) -> Iterator[Extent]:
        low, high = 0, len(self.extents)
        while low < high:
            middle = (low + high) // 2
            if self.extents[middle].end <= start:
                low = middle + 1
            else:
                high = middle
        for index in range(low, len(self.extents)):
            yield self.extents[index]


@dataclass(frozen=True, slots=True)
class Inode:
    """A regular file's: `ctime` in seconds since 1970, `generation` as of its handle."""

    number: int
    generation: int
    ctime: float

    HANDLE = 1  # include/linux/exportfs.h: FILEID_INO32_GEN

    @property
    def handle(self) -> bytes:
        """What open_by_handle_at(2) takes of that kind."""
        return struct.pack("=II", self.number, self.generation)


class Files:
    """The files of the filesystem in the image that is open as `image`, by their inode numbers.

    Raises ValueError where there is no such filesystem, or one that is not read here; OSError.
    """

    def __init__(self, image: int) -> None:
        raw = os.pread(image, 1024, _SUPERBLOCK)
        if len(raw) < 1024 or _u16(raw, 0x38) != _MAGIC:
            raise ValueError("no ext2, ext3 or ext4 filesystem")
        incompatible = _u32(raw, 0x60)
        if incompatible & _META_BG:
            raise ValueError("its group descriptors are spread out (meta_bg)")
        if _u32(raw, 0x18) > 6:
            raise ValueError("its blocks are too large")
        wide = bool(incompatible & _64BIT)
        self._image = image
        self._block_size = 1024 << _u32(raw, 0x18)
        self._blocks = _u32(raw, 0x04) | (_u32(raw, 0x150) << 32 if wide else 0)
        self._inodes = _u32(raw, 0x00)
        self._first = _u32(raw, 0x54) if _u32(raw, 0x4C) else 11  # EXT4_GOOD_OLD_FIRST_INO
        self._tells_unused = bool(_u32(raw, 0x64) & (_GDT_CSUM | _METADATA_CSUM))
        self._per_group = _u32(raw, 0x28)
        self._inode_size = _u16(raw, 0x58) if _u32(raw, 0x4C) else 128
        self._descriptors = (_SUPERBLOCK // self._block_size + 1) * self._block_size
        self._descriptor_size = max(_u16(raw, 0xFE), 32) if wide else 32
        self._groups = -(-self._inodes // self._per_group) if self._per_group else 0
        fits = (
            self._blocks * self._block_size <= os.lseek(image, 0, os.SEEK_END)
            and 0 < self._groups <= self._blocks
            and 128 <= self._inode_size <= self._block_size
        )
        if not fits:
            raise ValueError("its superblock makes no sense")

    def file(self, inode: int) -> File | None:
        """The regular file with that number and a name, None where there is none.

        Raises ValueError for what is encrypted, or makes no sense; OSError.
        """
        raw = self._inode(inode)
        if raw is None or _u16(raw, 0) >> 12 != _REGULAR or not _u16(raw, 26):
            return None  # what a check frees keeps its size and its blocks
        flags, generation = _u32(raw, 32), _u32(raw, 100)
        size = _u32(raw, 4) | _u32(raw, 108) << 32
        if flags & _ENCRYPTED:
            raise ValueError("it is encrypted")
        if flags & _INLINE_DATA:
            return File(size, generation, inline=_inline(raw, size))
        blocks = _Blocks(self._image, self._block_size, self._blocks)
        root = raw[40:100]
        pieces = _leaves(blocks, root) if flags & _EXTENTS else _map(blocks, root, size)
        return File(size, generation, tuple(self._extents(pieces)))

    def inode(self, number: int) -> Inode | None:
        """The regular file with that number, also where it has no name. Raises OSError."""
        raw = self._inode(number)
        if raw is None or _u16(raw, 0) >> 12 != _REGULAR:
            return None
        return Inode(number, _u32(raw, 100), float(_u32(raw, 12)))

    def _extents(self, pieces: Iterable[_Piece]) -> Iterator[Extent]:
        """The pieces in bytes, with those as one that go on from each other."""
        last: Extent | None = None
        count = 0
        for logical, length, block in pieces:
            start, end = logical * self._block_size, (logical + length) * self._block_size
            place = block * self._block_size
            if block + length > self._blocks or (last is not None and start < last.end):
                raise ValueError(_NO_SENSE)
            if last is not None and last.end == start and _end_of(last) == place:
                last = Extent(last.start, end, last.place)
                continue
            if last is not None:
                yield last
            last, count = Extent(start, end, place), count + 1
            if count > _MOST_EXTENTS:
                raise ValueError("it lies in too many pieces")
        if last is not None:
            yield last

    def changed(self, since: float, *, in_memory: bool = False) -> Iterator[list[Inode]]:
        """Of each group of inodes the regular files with a name that changed at or after `since`.

        Where the image is the device of a mounted filesystem, which is what that has in memory
        then; with `in_memory` nothing else of it is read. Raises OSError.
        """
        for group in range(self._groups):
            table, used = self._table(group)
            found: list[Inode] = []
            for start, end in self._pieces(
                table, table + used * self._inode_size, in_memory=in_memory
            ):
                raw = os.pread(self._image, end - start, start)
                first = group * self._per_group + (start - table) // self._inode_size + 1
                whole = raw[: len(raw) // self._inode_size * self._inode_size]
                found += _regular(whole, self._inode_size, first, since)
            yield [one for one in found if one.number >= self._first]

    def _table(self, group: int) -> tuple[int, int]:
        """Where the inodes of a group begin, and how many of them have ever been used."""
        at = self._descriptors + group * self._descriptor_size
        raw = os.pread(self._image, self._descriptor_size, at)
        if len(raw) < self._descriptor_size:
            return 0, 0
        table, unused = _u32(raw, 8), _u16(raw, 0x1C)
        if self._descriptor_size >= 64:
            table |= _u32(raw, 0x28) << 32
            unused |= _u16(raw, 0x32) << 16
        if not self._tells_unused:
            unused = 0
        elif _u16(raw, 0x12) & _INODE_UNINIT:
            unused = self._per_group
        if table >= self._blocks:
            return 0, 0
        return table * self._block_size, max(self._per_group - unused, 0)

    def _pieces(self, start: int, end: int, *, in_memory: bool) -> Iterator[tuple[int, int]]:
        if in_memory:
            yield from pagecache.ranges(self._image, start, end, _HELD_AT_ONCE)
        else:
            for at in range(start, end, _READ_AT_ONCE):
                yield at, min(at + _READ_AT_ONCE, end)

    def _inode(self, number: int) -> bytes | None:
        if not 0 < number <= self._inodes:
            return None
        group, index = divmod(number - 1, self._per_group)
        table, used = self._table(group)
        if index >= used:
            return None
        raw = os.pread(self._image, self._inode_size, table + index * self._inode_size)
        return raw if len(raw) == self._inode_size else None


class _Blocks:
    """The blocks that tell of one file's others, so many at the most: no tree is without end."""

    def __init__(self, image: int, size: int, count: int) -> None:
        self._image = image
        self.size = size
        self._count = count
        self._left = _MOST_NODES

    def read(self, number: int) -> bytes:
        self._left -= 1
        if self._left < 0 or number >= self._count:
            raise ValueError(_NO_SENSE)
        return os.pread(self._image, self.size, number * self.size)


def _leaves(blocks: _Blocks, node: bytes, depth: int | None = None) -> Iterator[_Piece]:
    """What was written, below a node of the extent tree that is `depth` above the leaves."""
    magic, entries, _, its_depth = _EXTENT_NODE.unpack_from(node)
    room = len(node) // _EXTENT_NODE.size - 1
    fits = its_depth <= _MOST_DEPTH if depth is None else its_depth == depth
    if magic != _EXTENT_MAGIC or not fits or entries > room:
        raise ValueError(_NO_SENSE)
    for at in range(12, 12 + entries * 12, 12):
        if its_depth == 0:
            logical, length, upper, lower = _LEAF.unpack_from(node, at)
            if length <= _INITIALIZED:
                yield logical, length, lower | upper << 32
        else:
            _, lower, upper = _INDEX.unpack_from(node, at)
            yield from _leaves(blocks, blocks.read(lower | upper << 32), its_depth - 1)


def _map(blocks: _Blocks, roots: bytes, size: int) -> Iterator[_Piece]:
    """The same where blocks are listed one by one (ext2, ext3)."""
    end, logical = -(-size // blocks.size), 0
    for root, level in zip(struct.unpack("<15L", roots), (*[0] * _DIRECT, 1, 2, 3), strict=True):
        yield from _mapped(blocks, root, level, logical, end)
        logical += (blocks.size // 4) ** level


def _mapped(blocks: _Blocks, block: int, level: int, logical: int, end: int) -> Iterator[_Piece]:
    if block == 0 or logical >= end:
        return
    if level == 0:
        yield logical, 1, block
        return
    each = (blocks.size // 4) ** (level - 1)
    for number, child in enumerate(struct.unpack(f"<{blocks.size // 4}L", blocks.read(block))):
        yield from _mapped(blocks, child, level - 1, logical + number * each, end)


def _regular(raw: bytes, size: int, first: int, since: float) -> Iterator[Inode]:
    """Those of the inodes in `raw`, the first of which has the number `first`; see `changed`."""
    long = size >= 136
    rest = size - (136 if long else 104)
    form = struct.Struct(f"{_SHORT}{_LONG if long else ''}{rest}x")
    for number, (mode, ctime, links, generation, *more) in enumerate(form.iter_unpack(raw), first):
        if mode >> 12 == _REGULAR and links:
            # Two bits of the year, and nanoseconds.
            extra = more[1] if more and more[0] >= 8 else 0
            changed = ctime + ((extra & 3) << 32) + (extra >> 2) / 1e9
            if changed >= since:
                yield Inode(number, generation, changed)


def _inline(inode: bytes, size: int) -> bytes:
    """What lies in the inode itself: sixty bytes where its blocks would be told, and the rest as
    the value of an attribute, `system.data`."""
    content = inode[40:100]
    header = 128 + _u16(inode, 128) if len(inode) > 130 else len(inode)
    if size > len(content) and header + 4 <= len(inode) and _u32(inode, header) == _XATTR_MAGIC:
        first = header + 4
        at = first
        while at + _XATTR.size <= len(inode) and _u32(inode, at):
            length, index, place, _, value = _XATTR.unpack_from(inode, at)
            name = inode[at + _XATTR.size : at + _XATTR.size + length]
            if index == _SYSTEM and name == b"data":
                content += inode[first + place : first + place + value]
            at += _XATTR.size + length + -length % 4
    if size > len(content):
        raise ValueError("its content is not all there")
    return content[:size]


def _end_of(extent: Extent) -> int | None:
    return None if extent.place is None else extent.place + extent.end - extent.start


def _u16(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 2], "little")


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")
