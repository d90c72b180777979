"""The header of a COW file of User-mode Linux (`arch/um/drivers/cow_user.c`, `union cow_header`).

A COW file holds what one instance has changed; all the rest it reads from its backing file, which
several instances may share. Pure: bytes in, values out. The bytes are somebody else's, none of them
is believed before it was looked at.

Versions 2 and 3 are big-endian, version 1 has the order of the machine that wrote it. Version 3
exists twice: packed, and as 64-bit programs wrote it until 2005, with four bytes more after the
time.
"""

import os
import struct
from dataclasses import dataclass

MAGIC = b"OOOM"
# The longest header; so much is read of a file, or all there is.
HEADER_SIZE = 4136

_PATH_V1 = 256
_PATH = 4096
_MAX_ALIGNMENT = 1 << 20


class CowFormatError(ValueError):
    """It begins as a COW file does, and is none that the kernel would open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CowHeader:
    """`backing_file` is as written: absolute since version 3, else as it was given to the instance.

    `modified` (seconds since 1970) and `size` (bytes) are those of the backing file when the COW
    file was made: a backing file that has others now is another one, and the two do not fit.
    """

    version: int
    backing_file: str
    modified: int
    size: int
    sector_size: int


def parse(data: bytes) -> CowHeader | None:
    """The header at the start of a file, None where it is no COW file. Raises CowFormatError."""
    magic = data[:4]
    if magic not in {MAGIC, MAGIC[::-1]}:
        return None
    order = ">" if magic == MAGIC else "<"
    (version,) = _unpack(order + "I", data, 4)
    if version == 1:
        header = _early(order, data, _PATH_V1, version)
    elif version == 2:
        header = _early(">", data, _PATH, version)
    elif version == 3:
        header = _third(data)
    else:
        raise CowFormatError(f"version {version} of COW files is not known")
    if header.sector_size <= 0 or header.sector_size % 512:
        raise CowFormatError(f"sectors of {header.sector_size} bytes")
    return header


def _early(order: str, data: bytes, path_size: int, version: int) -> CowHeader:
    end = 8 + path_size
    modified, size, sector_size = _unpack(f"{order}IQi", data, end)
    return CowHeader(
        version=version,
        backing_file=_path(data[8:end]),
        modified=modified,
        size=size,
        sector_size=sector_size,
    )


def _third(data: bytes) -> CowHeader:
    # In the unpacked form `cow_format`, always zero, stands where the packed one has the path.
    if len(data) >= 36 and data[32:36] == bytes(4):
        form, path = ">I4xQIII", 36
    else:
        form, path = ">IQIII", 32
    modified, size, sector_size, alignment, cow_format = _unpack(form, data, 8)
    if cow_format != 0 or not 0 < alignment <= _MAX_ALIGNMENT:
        raise CowFormatError(f"format {cow_format}, aligned to {alignment} bytes")
    return CowHeader(
        version=3,
        backing_file=_path(data[path : path + _PATH]),
        modified=modified,
        size=size,
        sector_size=sector_size,
    )


def _path(field: bytes) -> str:
    name, end, _ = field.partition(b"\0")
    if not end or not name:
        raise CowFormatError("the name of the backing file does not end, or is empty")
    return os.fsdecode(name)


def _unpack(form: str, data: bytes, offset: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, offset)
    except struct.error:
        raise CowFormatError(f"the header ends after {len(data)} bytes") from None
