"""What was heard and is not in the database yet, in memory that outlives the daemon.

The database lies on a disk, and a disk may take long, above all on a node whose disks fail. An
event is therefore written here first, to a file on tmpfs (tmpfs(5)), where a write waits for
nothing: when the daemon is killed, the next one finds it. A power cut takes it along, as it takes
the newest commits of the database (`synchronous=NORMAL`).

A runtime directory that is not on tmpfs gets no spool: writing there could block the event loop.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fswatchd.kernel import syscalls

# More than the events that may wait for the database, at their usual size.
LIMIT_BYTES = 16 << 20

TMPFS_MAGIC = 0x01021994  # linux/magic.h
_HEAD = struct.Struct("=II")  # length and CRC-32 of the record that follows


class Spool:
    """An append-only file of records, each a list of JSON values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = 0

    @property
    def is_open(self) -> bool:
        """Whether records are kept."""
        return self._fd >= 0

    def open(self) -> list[list[object]]:
        """Start keeping records; returns those that an earlier run has left, oldest first.

        Without tmpfs beneath the path nothing is kept. Raises OSError.
        """
        if syscalls.filesystem_magic(str(self._path.parent)) != TMPFS_MAGIC:
            return []
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        left = os.pread(self._fd, LIMIT_BYTES, 0)
        self._size = len(left)
        return list(_records(left))

    def left(self) -> list[list[object]]:
        """What has been kept since the last `clear`, oldest first. Raises OSError."""
        return list(_records(os.pread(self._fd, LIMIT_BYTES, 0))) if self.is_open else []

    def append(self, record: list[object]) -> bool:
        """Keep a record; False where it is not kept, because there is no room or no spool."""
        if self._fd < 0:
            return False
        body = json.dumps(record).encode()
        whole = _HEAD.pack(len(body), zlib.crc32(body)) + body
        if self._size + len(whole) > LIMIT_BYTES:
            return False
        try:
            written = os.write(self._fd, whole)
        except OSError:
            written = 0  # no memory
        self._size += written
        if written != len(whole):
            self._truncate(self._size - written)
            return False
        return True

    def clear(self) -> None:
        """Everything is in the database."""
        if self._size:
            self._truncate(0)

    def close(self) -> None:
        """Keep nothing any more; what is there stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _truncate(self, size: int) -> None:
        with suppress(OSError):
            os.ftruncate(self._fd, size)
            self._size = size


def _records(data: bytes) -> Iterator[list[object]]:
    """Every whole record; what a kill has cut off ends them."""
    offset = 0
    while offset + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        body = data[offset : offset + length]
        if len(body) != length or zlib.crc32(body) != crc:
            return
        record = json.loads(body)
        if isinstance(record, list):
            yield record
        offset += length
