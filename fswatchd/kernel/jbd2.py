"""Old copies of blocks in an ext4 journal (fs/jbd2, Documentation/filesystems/ext4/journal.rst).

A journal is written round and round: what was logged stays until it is overwritten, also after a
replay. Numbers in it are big-endian, and its bytes are a tenant's choice: nothing here trusts them.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = 0xC03B3998
_DESCRIPTOR = 1
_SUPERBLOCKS = {3, 4}
_64BIT, _CSUM_V2, _CSUM_V3 = 0x2, 0x8, 0x10
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_HEADER = struct.Struct(">III")
_DIRECTORY_ENTRY = struct.Struct("<IHBB")
_MAX_BLOCK = 65536


@dataclass(frozen=True, slots=True)
class Copy:
    """The block `target` of the filesystem as transaction `sequence` logged it, at `position`."""

    sequence: int
    target: int
    position: int


def copies(read: Callable[[int], bytes], length: int) -> list[Copy]:
    """All copies that are still whole, oldest first; `read` returns the journal's n-th block.

    What cannot be a journal has none.
    """
    head = read(0)
    if len(head) < 64 or _HEADER.unpack_from(head)[0] != MAGIC:
        return []
    if _HEADER.unpack_from(head)[1] not in _SUPERBLOCKS:
        return []
    first = struct.unpack_from(">I", head, 20)[0]
    features = struct.unpack_from(">I", head, 40)[0]
    if not 0 < first < length:
        return []
    found: dict[int, Copy] = {}
    written: set[int] = set()
    descriptors: list[tuple[int, int, bytes]] = []
    for position in range(first, length):
        block = read(position)
        if len(block) < 12 or block[:4] != b"\xc0\x3b\x39\x98":
            continue
        written.add(position)  # the journal's own, so no copy of anything
        _, kind, sequence = _HEADER.unpack_from(block)
        if kind == _DESCRIPTOR:
            descriptors.append((sequence, position, block))
    for sequence, position, block in sorted(descriptors, key=lambda one: one[0]):
        for target, flags in _tags(block, features):
            position = first if position + 1 >= length else position + 1
            if position not in written and not flags & _ESCAPED:
                found[position] = Copy(sequence, target, position)
    return sorted(found.values(), key=lambda copy: copy.sequence)


def _tags(block: bytes, features: int) -> Iterator[tuple[int, int]]:
    """(block number, flags) of each tag of a descriptor block."""
    place, end = _HEADER.size, len(block)
    while place + 16 <= end:
        low, high = struct.unpack_from(">I", block, place)[0], 0
        if features & _CSUM_V3:
            flags, high = struct.unpack_from(">II", block, place + 4)
            size = 16
        else:
            flags = struct.unpack_from(">H", block, place + 6)[0]
            size = 8
            if features & _64BIT:
                high = struct.unpack_from(">I", block, place + 8)[0]
                size = 12
        yield low | (high << 32 if features & _64BIT else 0), flags
        place += size if flags & _SAME_UUID else size + 16
        if flags & _LAST:
            return


def directory_entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    """(inode, name) of what may be a block of a directory; nothing of what cannot be one."""
    if len(block) >= _MAX_BLOCK:
        return  # record lengths are coded differently there
    entries, place = [], 0
    while place < len(block):
        if place + _DIRECTORY_ENTRY.size > len(block):
            return
        inode, length, name_length, _ = _DIRECTORY_ENTRY.unpack_from(block, place)
        if length % 4 or length < 8 + name_length or place + length > len(block) or length < 12:
            return
        name = block[place + 8 : place + 8 + name_length]
        if inode and name_length and (b"/" in name or b"\0" in name):
            return
        if inode and name_length and name not in {b".", b".."}:
            entries.append((inode, name))
        place += length
    yield from entries
