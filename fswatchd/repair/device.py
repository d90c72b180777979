"""Know a volume again that is a block device, whatever has its name or number by now.

`/dev/dm-3` is another disk after a stop that deactivated it, and after every boot. What stays is
DISKSEQ, within one boot, and the UUID in the superblock that is on the device itself.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import Any

from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block, proc

# struct ext4_super_block (fs/ext4/ext4.h), which begins at byte 1024.
_SUPERBLOCK = 1024
_MAGIC = _SUPERBLOCK + 0x38
_UUID = _SUPERBLOCK + 0x68
_EXT_MAGIC = b"\x53\xef"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """What tells a device from all others: `disk_sequence` while `boot` lasts, `uuid` always."""

    boot: str
    disk_sequence: int | None
    uuid: str | None

    @classmethod
    def of(cls, superblock: Superblock) -> DeviceIdentity:
        """Of the device that this filesystem is mounted from now."""
        return cls(
            boot=proc.boot_id(), disk_sequence=superblock.disk_sequence, uuid=superblock.uuid
        )

    @classmethod
    def read(cls, facts: Any) -> DeviceIdentity | None:
        """As `describe` has put it into a journal; None where nothing is."""
        if not isinstance(facts, dict):
            return None
        return cls(
            boot=str(facts.get("boot")),
            disk_sequence=facts.get("disk_sequence"),
            uuid=facts.get("uuid"),
        )

    def describe(self) -> dict[str, Any]:
        """For the journal."""
        return {"boot": self.boot, "disk_sequence": self.disk_sequence, "uuid": self.uuid}

    def difference(self, fd: int) -> str | None:
        """None when the open device is this one; otherwise what does not fit, or is not known."""
        if self.uuid is None:
            return "the filesystem's UUID is not known, so that it could not be told from others"
        if self.boot == proc.boot_id() and block.disk_sequence_of(fd) != self.disk_sequence:
            return "the device was given to another disk meanwhile"
        found = ext_uuid(fd)
        if found != self.uuid:
            return f"it holds {found or 'no ext filesystem'}, not the filesystem {self.uuid}"
        return None


def ext_uuid(fd: int) -> str | None:
    """`s_uuid` of the ext2/3/4 superblock on the open device, None where there is none."""
    found = os.pread(fd, 16, _UUID)
    if os.pread(fd, 2, _MAGIC) != _EXT_MAGIC or len(found) < 16 or not any(found):
        return None
    return str(uuid.UUID(bytes=found))
