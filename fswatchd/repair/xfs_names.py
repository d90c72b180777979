"""Which files of an XFS have data in these sectors: xfs_db(8) on a clone whose log was replayed.

Its tables on the disk are whole only then, and xfs_db refuses before. The clone has no name and
its loop device goes with its last user, so that nothing is left behind whatever happens; where no
blocks can be shared there is no clone, and no name.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection

from fswatchd import process
from fswatchd.events import LostWrite, printable
from fswatchd.kernel import fs
from fswatchd.repair import clone, scratch, xfs
from fswatchd.repair.volume import ImageFile
from fswatchd.sandbox import Sandbox
from fswatchd.steps import ActionSettings

_TIMEOUT_S = 120.0
_USE = re.compile(r"^block \d+ \(\d+/\d+\) type data inode (\d+) (.+)$", re.MULTILINE)


async def of_sectors(
    image: ImageFile, sectors: Collection[int], settings: ActionSettings
) -> list[LostWrite]:
    """The files that have data in these sectors (of 512 bytes) of the image.

    Raises OSError where there can be no clone, StepEnded where there is no room for one.
    """
    await clone.check_room(image, settings, shared=True)
    unnamed = await asyncio.to_thread(_clone, image)
    try:
        end = os.fstat(unnamed).st_size // 512
        async with scratch.attached_file(unnamed) as device:
            replayed = await xfs.replay(device, _TIMEOUT_S)
            if not replayed.clean:
                raise OSError(5, replayed.what, image.path)
            # A sector beyond the end would be answered with the one before it.
            return await _look_up(device, [sector for sector in sectors if sector < end])
    finally:
        os.close(unnamed)


async def _look_up(device: str, sectors: Collection[int]) -> list[LostWrite]:
    words = ["-c", "blockget -n"]
    for sector in sectors:
        words += ["-c", f"daddr {sector}", "-c", "blockuse -n"]
    sandbox = Sandbox(device=device, readonly=True, cpu_s=_TIMEOUT_S, threads=True)
    argv = ("xfs_db", "-r", *words, device)
    done = await process.run(argv, timeout_s=_TIMEOUT_S, heavy=True, sandbox=sandbox)
    found = {int(inode): path for inode, path in _USE.findall(done.output)}
    return [LostWrite(inode=inode, path=printable(f"/{found[inode]}")) for inode in sorted(found)]


def _clone(image: ImageFile) -> int:
    """A file without a name that shares all blocks of the image. Raises OSError."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    with clone.opened(image) as source:
        target = os.open(image.directory, flags, 0o600)
        try:
            fs.reflink(source, target)
        except BaseException:
            os.close(target)
            raise
    return target
