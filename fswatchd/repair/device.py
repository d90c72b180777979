"""Know a volume again that is a block device, whatever has its name or number by now.

`/dev/dm-3` is another disk after a stop that deactivated it, and after every boot. What stays is
DISKSEQ, within one boot, and the UUID in the superblock that is on the device itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block, magic, proc


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
        found = magic.uuid_of(fd)
        if found != self.uuid:
            return (
                f"it holds {found or 'no filesystem that is known'}, not the filesystem {self.uuid}"
            )
        return None
