"""Helper program: the digest of a piece of a file, read from the disk and not from memory.

`python -m fswatchd.helpers.digest PATH OFFSET LENGTH` prints one JSON object: `file` (inode,
modification time in nanoseconds, size), `digest` (BLAKE2b-128, hex) and the `seconds` that it took;
or `changed`, where somebody wrote meanwhile; or `errno`. Where the filesystem can, it reads past
the page cache (O_DIRECT, open(2)): what is cached says nothing about the disk, and what is read
here would push out what others need.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from contextlib import suppress
from typing import Any

_BUFFER = 1 << 20


def piece(path: str, offset: int, length: int) -> dict[str, Any]:
    """See above. `offset` and `length` are multiples of 1 MiB; the last piece may end earlier."""
    try:
        fd = _open(path)
    except OSError as error:
        return {"errno": error.errno}
    try:
        begin = time.monotonic()
        before = _identity(fd)
        digest = hashlib.blake2b(digest_size=16)
        with mmap.mmap(-1, _BUFFER) as buffer, memoryview(buffer) as view:
            position = offset
            while position < offset + length:
                count = os.preadv(fd, [view], position)
                digest.update(view[:count])
                position += count
                if count < _BUFFER:
                    break
        if _identity(fd) != before:
            return {"changed": True}
        seconds = time.monotonic() - begin
        return {"file": before, "digest": digest.hexdigest(), "seconds": seconds}
    except OSError as error:
        return {"errno": error.errno}
    finally:
        os.close(fd)


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(OSError):
        return os.open(path, flags | os.O_DIRECT)
    return os.open(path, flags)


def _identity(fd: int) -> list[int]:
    status = os.fstat(fd)
    return [status.st_ino, status.st_mtime_ns, status.st_size]


if __name__ == "__main__":
    json.dump(piece(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
