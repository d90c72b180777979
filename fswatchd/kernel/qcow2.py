"""The header of a qcow2 image: what it rests on (QEMU, docs/interop/qcow2). Pure.

Never guess from the content that an image is qcow2: whoever writes to a raw image could write
this header into it, and name any file of the node as its backing file.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass

MAGIC = b"QFI\xfb"
# The header and its extensions end before the backing file's name, all in the first cluster,
# which has 64 KiB unless somebody chose otherwise.
HEADER_SIZE = 64 << 10

_START = struct.Struct(">4sIQI")
_LENGTH_AT, _V2_LENGTH, _V3_LEAST = 100, 72, 104
_INCOMPATIBLE_AT = 72
_DIRTY, _CORRUPT, _EXTERNAL_DATA = 1, 2, 4
_EXTENSION = struct.Struct(">II")
_END, _BACKING_FORMAT, _DATA_FILE = 0, 0xE2792ACA, 0x44415441
_MAX_NAME = 1023


class Qcow2Error(ValueError):
    """It is no qcow2 image, or its header cannot be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says. `backing` and `data_file` are names as they stand there.

    `backing_format` is `raw`, `qcow2`… or None where the header leaves it open; `dirty` and
    `corrupt` are the marks of its last writer.
    """

    version: int
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    dirty: bool = False
    corrupt: bool = False


def parse(data: bytes) -> Header:
    """From the first `HEADER_SIZE` bytes of an image, or all of it. Raises Qcow2Error."""
    if len(data) < _V2_LENGTH or data[:4] != MAGIC:
        raise Qcow2Error("no qcow2 header")
    _, version, name_at, name_length = _START.unpack_from(data)
    length, features = _V2_LENGTH, 0
    if version not in {2, 3}:
        raise Qcow2Error(f"qcow2 version {version} is not known")
    if version == 3:
        if len(data) < _V3_LEAST:
            raise Qcow2Error("the header is cut short")
        (features,) = struct.unpack_from(">Q", data, _INCOMPATIBLE_AT)
        (length,) = struct.unpack_from(">I", data, _LENGTH_AT)
        if not _V3_LEAST <= length <= len(data):
            raise Qcow2Error(f"a header of {length} bytes")
    extensions = _extensions(data, length, name_at)
    return Header(
        version=version,
        backing=_name(data, name_at, name_length) if name_at else None,
        backing_format=_text(extensions.get(_BACKING_FORMAT)),
        data_file=_text(extensions.get(_DATA_FILE)) if features & _EXTERNAL_DATA else None,
        dirty=bool(features & _DIRTY),
        corrupt=bool(features & _CORRUPT),
    )


def file_of(name: str, image: str) -> str | None:
    """The path that a backing name in `image` leads to; None where it is no local file.

    A relative name is relative to the directory of the image; `file:` and `json:` are QEMU's
    other ways to write one.
    """
    if name.startswith("json:"):
        found = _json_file(name.removeprefix("json:"))
        if found is None:
            return None
        name = found
    protocol, colon, rest = name.partition(":")
    if colon and "/" not in protocol:
        if protocol != "file":
            return None
        name = rest.removeprefix("//")
    return os.path.normpath(os.path.join(os.path.dirname(image), name)) if name else None


def _json_file(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for _ in range(8):
        if not isinstance(found, dict):
            return None
        name = found.get("filename", found.get("file.filename"))
        if isinstance(name, str):
            return name
        found = found.get("file")
    return None


def _name(data: bytes, start: int, length: int) -> str:
    if not 0 < length <= _MAX_NAME or start + length > len(data):
        raise Qcow2Error(f"a backing file name of {length} bytes at {start}")
    name = data[start : start + length]
    if b"\0" in name:
        raise Qcow2Error("a zero byte in the backing file name")
    return os.fsdecode(name)


def _extensions(data: bytes, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    last = min(end or len(data), len(data))
    while start + _EXTENSION.size <= last:
        kind, length = _EXTENSION.unpack_from(data, start)
        start += _EXTENSION.size
        if kind == _END or start + length > last:
            break
        found[kind] = data[start : start + length]
        start += (length + 7) & ~7
    return found


def _text(data: bytes | None) -> str | None:
    return None if not data else os.fsdecode(data.rstrip(b"\0"))
