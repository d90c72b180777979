"""A loop device whose image is shorter than itself: what lies beyond cannot be read.

Nothing tells of it: reads beyond the end give zeros, or errors where the device reads directly
(drivers/block/loop.c), and both only when somebody happens to read there.
"""

from __future__ import annotations

import errno

from fswatchd.events import EventClass
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block
from fswatchd.sources.probes import Finding, Probe
from fswatchd.units import show_size


class LoopProbe(Probe):
    """The image below one superblock."""

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self._short = 0

    def look(self) -> list[Finding]:
        """See Probe."""
        before, self._short = self._short, missing_bytes(self._superblock)
        if self._short <= before:
            return []
        text = f"the image is {show_size(self._short)} shorter than the device"
        return [Finding(klass=EventClass.IO_ERROR, text=text, errno=errno.EIO)]


def missing_bytes(superblock: Superblock) -> int:
    """How many bytes at the end of a loop device its image does not have; 0 where unknown.

    A host filesystem without a device of its own may be a server's, who need not answer: nobody
    asks for the size of a file there.
    """
    backing = superblock.backing
    if backing.kind != "loop" or backing.image is None or backing.inode_key is None:
        return 0
    if backing.inode_key[0].major == 0:
        return 0
    device = superblock.members[0] if superblock.members else superblock.devno
    return block.image_short_by(device, backing.image, backing.inode_key, backing.offset)
