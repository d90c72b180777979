"""Loop devices on clones of ours: attached for a moment, known as ours, and gone again.

What the kernel says of them is about a copy that a repair works on, and no fault of anybody's
filesystem: `is_ours` tells such a line by the name and the time it was written at, because the name
may be somebody else's device a moment later.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fswatchd.devno import Devno
from fswatchd.kernel import loop

_KEPT = 64
_SLACK_NS = 5_000_000  # the kernel's clock for its lines is not quite CLOCK_MONOTONIC
_RELEASE_TIMEOUT_S = 30.0
_LOCK_TIMEOUT_S = 30.0
_POLL_S = 0.01


@dataclass(slots=True)
class _Use:
    name: str
    since_ns: int
    until_ns: int | None = None


_uses: deque[_Use] = deque(maxlen=_KEPT)


def is_ours(device: str, written_ns: int) -> bool:
    """Whether the device of this name was one of ours at that time (CLOCK_MONOTONIC)."""
    return any(
        use.name == device
        and use.since_ns - _SLACK_NS <= written_ns
        and (use.until_ns is None or written_ns <= use.until_ns + _SLACK_NS)
        for use in _uses
    )


@asynccontextmanager
async def attached(path: str) -> AsyncIterator[str]:
    """The image at `path` as a loop device that nothing but us knows of.

    It is locked against udev for as long as it exists (systemd's BLOCK_DEVICE_LOCKING), so that no
    link by UUID or label moves to a copy. Raises OSError; TimeoutError where it does not go away.
    """
    image = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        async with attached_file(image) as device:
            yield device
        await asyncio.to_thread(os.fsync, image)
    finally:
        os.close(image)


@asynccontextmanager
async def attached_file(image: int) -> AsyncIterator[str]:
    """The same of an open file, which needs no name."""
    began = time.monotonic_ns()
    device, fd = await asyncio.to_thread(loop.attach, image, autoclear=True)
    use = _Use(os.path.basename(device), began)
    _uses.append(use)
    try:
        await locked(fd)
        yield device
    finally:
        os.close(fd)
        await _gone(image, device)
        use.until_ns = time.monotonic_ns()


async def locked(fd: int) -> None:
    """Keep udev away from the device until `fd` is closed (systemd's BLOCK_DEVICE_LOCKING).

    It may be looking at one that has just appeared. Raises OSError.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return


async def _gone(image: int, device: str) -> None:
    status = os.fstat(image)
    file = (Devno.of(status.st_dev), status.st_ino)
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while device in await asyncio.to_thread(loop.holders, *file):
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(_POLL_S)
