"""A logical volume of LVM, known by UUID: a name may be another volume's a moment later.

The kernel has the UUIDs of volume group and volume in that of the device, while the volume is
active. What is not active is nowhere: `repair.lvm_storage.wake` activates what is asked about.
"""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fswatchd.devno import Devno
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import block, dm, proc

Stamp = tuple[int, int, int]

# lib/activate/dev_manager.c of LVM: what has a suffix is a layer within a volume.
_UUID = re.compile(r"LVM-([A-Za-z0-9]{32})([A-Za-z0-9]{32})")
_GROUPS = (6, 4, 4, 4, 4, 4, 6)
_POOL = "-tpool"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A logical volume by the name it has (`/dev/VG/LV`) and the UUID of its device."""

    path: str
    uuid: str

    @classmethod
    def on(cls, devno: Devno, sysfs: Path = block.SYSFS) -> LogicalVolume | None:
        """What this device is; None for no logical volume, and for a layer within one."""
        found = block.attribute(devno, "dm/uuid", sysfs) or ""
        parts = dm.split(block.attribute(devno, "dm/name", sysfs) or "")
        if not _UUID.fullmatch(found) or len(parts) != 2:
            return None
        return cls(path=f"/dev/{parts[0]}/{parts[1]}", uuid=found)

    @classmethod
    def at(cls, path: str, sysfs: Path = block.SYSFS) -> LogicalVolume | None:
        """What has this name and is active."""
        devno = dm.find("name", device_name(path), sysfs)
        return cls.on(devno, sysfs) if devno is not None else None

    @property
    def group(self) -> str:
        """The name of its volume group."""
        return self.path.split("/")[2]

    @property
    def lvm_uuid(self) -> str:
        """Its UUID as LVM writes it (`lvs -o lv_uuid`)."""
        return _dashed(self.uuid[-32:])

    @property
    def identity(self) -> str:
        """What it is known by, for people."""
        return f"UUID {self.lvm_uuid}"

    @property
    def devno(self) -> Devno | None:
        """Its device now, whatever it is called; None where it is not active."""
        return dm.find("uuid", self.uuid)

    @property
    def node(self) -> str:
        """`/dev/dm-N` as it is now. Raises FileNotFoundError where it is not active."""
        devno = self.devno
        name = block.name_of(devno) if devno is not None else None
        if name is None:
            raise FileNotFoundError(2, "it is not active", self.path)
        return f"/dev/{name}"

    @property
    def pool(self) -> str | None:
        """The device of its thin pool, as dmsetup(8) calls it; None where it is in no pool.

        A volume that rests on anything beside a pool (an external origin) is none of these.
        """
        devno = self.devno
        lower = block.lower_devices(devno) if devno is not None else ()
        owner = block.attribute(lower[0], "dm/uuid") if len(lower) == 1 else None
        return block.attribute(lower[0], "dm/name") if (owner or "").endswith(_POOL) else None

    def is_at(self, path: str) -> bool:
        """Whether `path` is this volume, and it is active."""
        found = LogicalVolume.at(path)
        return found is not None and found.uuid == self.uuid

    def today(self, *paths: str | None) -> LogicalVolume:
        """The same: nothing that is kept of it changes with a boot."""
        del paths
        return self

    def stamp(self) -> Stamp | None:
        """What changes with every write to it; None where another has its name, or it is inactive.

        The kernel counts from when the device appeared: DISKSEQ and the boot say since when.
        """
        devno = self.devno
        if devno is None or not self.is_at(self.path):
            return None
        since, written = block.disk_sequence(devno), block.sectors_written(devno)
        if since is None or written is None:
            return None
        return (since, written, uuid.UUID(proc.boot_id()).int)

    def is_unchanged(self, since: Stamp | None) -> bool:
        """Whether nothing was written since it had that stamp; not known is no."""
        return since is not None and self.stamp() == since

    def holder(self) -> str | None:
        """Why nobody may start on it, exchange or delete it now; None where nothing has it open.

        Raises OSError.
        """
        try:
            return f"{self.path} is still in use" if block.is_claimed(self.node) else None
        except FileNotFoundError:
            return None

    def held_by(self) -> str | None:
        """The same: whoever writes to a device has it claimed."""
        return self.holder()

    @property
    def is_displaced(self) -> bool:
        """Whether its name leads to another volume; not where it is inactive, as after a stop."""
        found = LogicalVolume.at(self.path)
        return found is not None and found.uuid != self.uuid

    def carries(self, superblock: Superblock) -> bool:
        """Whether this filesystem is the one on it."""
        return block.attribute(superblock.devno, "dm/uuid") == self.uuid

    def describe(self) -> dict[str, Any]:
        """For the journal."""
        return {"path": self.path, "uuid": self.uuid}


def device_name(path: str) -> str:
    """What the device of `/dev/VG/LV` is called."""
    return dm.join(*path.removeprefix("/dev/").split("/"))


def full_name(path: str) -> str:
    """`VG/LV`, as the programs of LVM take it."""
    return path.removeprefix("/dev/")


def name(path: str) -> str:
    """`LV`."""
    return os.path.basename(path)


def _dashed(text: str) -> str:
    parts, begin = [], 0
    for length in _GROUPS:
        parts.append(text[begin : begin + length])
        begin += length
    return "-".join(parts)
