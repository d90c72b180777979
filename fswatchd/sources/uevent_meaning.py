"""What a uevent says about filesystems: pure, from its own words only.

Follows, each beside its words below: block/genhd.c, drivers/scsi/scsi_lib.c (`scsi_evt_emit`),
drivers/md/dm-uevent.c, drivers/md/dm-verity-target.c, drivers/nvme/host/core.c,
Documentation/filesystems/gfs2-uevents.rst, and fs/ext4/super.c of the Virtuozzo 7 kernel, which
sends an error as FS_ACTION once a mount.

An event that somebody asked the kernel to repeat (a write to a `uevent` file, udevadm trigger)
carries SYNTH_UUID: it tells of a device, never of a fault. Not here: which filesystems it reaches.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fswatchd.events import EventClass, Severity, printable

SUBSYSTEMS = frozenset({"block", "scsi", "nvme", "ext4", "gfs2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Uevent:
    """`name` is the last part of `path`, which is the DEVPATH below /sys."""

    action: str
    subsystem: str
    path: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The device's name, for people."""
        return printable(self.path.rpartition("/")[2], 64)


# The kernel removes neither while it is open (`loop_control_remove` in drivers/block/loop.c,
# `dm_lock_for_deletion` in drivers/md/dm.c): what was mounted on it has gone a moment ago.
_NEVER_IN_USE = re.compile(r"(?:loop|dm-)\d+")


class Reach(enum.Enum):
    """Which filesystems an event is about."""

    DISK = "on the device and its partitions"
    ABOVE = "on the device and all that rests on it"
    SCSI = "on the disks of a SCSI device"
    NVME = "on the namespaces of an NVMe controller"
    NAMED = "the one named by FS_NAME"
    GFS2 = "the one whose directory in sysfs it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """`klass` NONE: no fault, but a reason to read the state of these filesystems."""

    reach: Reach
    klass: EventClass = EventClass.NONE
    text: str = ""
    severity: Severity | None = None
    confirms: bool = True


def meaning(event: Uevent) -> Meaning | None:
    """What the event says, None when it says nothing about a filesystem. Never raises."""
    if "SYNTH_UUID" in event.properties:
        return None
    reader = _READERS.get(event.subsystem)
    return reader(event) if reader else None


def changes_topology(event: Uevent) -> bool:
    """Whether what is mounted on what may be another than before."""
    if event.subsystem == "ext4":
        return event.properties.get("FS_ACTION") in {"MOUNT", "UMOUNT", "REMOUNT"}
    return event.subsystem in {"block", "gfs2"} or "SDEV_UA" in event.properties


def _block(event: Uevent) -> Meaning | None:
    words = event.properties
    if event.action == "remove" and not _NEVER_IN_USE.fullmatch(event.name):
        text = f"{event.name} is gone while it is mounted"
        return Meaning(reach=Reach.DISK, klass=EventClass.DEVICE_LOST, text=text)
    if words.get("DISK_RO") == "1":
        text = f"{event.name} has become read-only while it is mounted for writing"
        return Meaning(reach=Reach.DISK, klass=EventClass.READONLY, text=text)
    if "DM_ACTION" in words:
        return _paths(words)
    if "DM_VERITY_ERR_BLOCK_NR" in words:
        kind, _, number = words["DM_VERITY_ERR_BLOCK_NR"].partition(",")
        what = {"0": "data", "1": "hash"}.get(kind, "unknown")
        text = f"dm-verity: {what} block {printable(number, 24)} of {event.name} is corrupted"
        return Meaning(reach=Reach.ABOVE, klass=EventClass.CORRUPTION, text=text)
    if event.action == "change" and event.name.startswith("md"):
        return Meaning(reach=Reach.ABOVE)  # md says only that something changed
    return None


def _paths(words: Mapping[str, str]) -> Meaning | None:
    """dm-multipath: DM_NR_VALID_PATHS is how many are left after the event."""
    name = printable(words.get("DM_NAME", "a multipath device"), 128)
    path = printable(words.get("DM_PATH", "?"), 32)
    left = words.get("DM_NR_VALID_PATHS", "")
    match words["DM_ACTION"]:
        case "PATH_FAILED" if left == "0":
            text = f"{name} has lost its last path ({path})"
            return Meaning(reach=Reach.ABOVE, klass=EventClass.DEVICE_LOST, text=text)
        case "PATH_FAILED":
            text = f"{name} has lost a path ({path}), {printable(left, 16) or '?'} are left"
            return Meaning(reach=Reach.ABOVE, klass=EventClass.DEGRADED, text=text)
        case "PATH_REINSTATED":
            text = f"{name} has a path back ({path}), {printable(left, 16) or '?'} are valid"
            return Meaning(reach=Reach.ABOVE, klass=EventClass.RECOVERED, text=text)
    return None


def _scsi(event: Uevent) -> Meaning | None:
    attention = event.properties.get("SDEV_UA")
    if attention is None:
        return None
    if attention == "THIN_PROVISIONING_SOFT_THRESHOLD_REACHED":
        text = f"the storage behind {event.name} reports that its thin pool is nearly full"
        return Meaning(
            reach=Reach.SCSI, klass=EventClass.SPACE, text=text, severity=Severity.WARNING
        )
    # Another capacity, other data about itself: a reason to look again, and no fault.
    return Meaning(reach=Reach.SCSI)


# NVM Express Base Specification, Asynchronous Event Request, completion queue entry dword 0:
# bits 2:0 are the type, bits 15:8 the information.
_HEALTH_INFORMATION = {
    0: "its reliability is compromised",
    1: "a temperature threshold is passed",
    2: "its spare space is below the threshold",
}


def _nvme(event: Uevent) -> Meaning | None:
    try:
        result = int(event.properties["NVME_AEN"], 16)
    except (KeyError, ValueError):
        return None
    kind, information = result & 0x7, result >> 8 & 0xFF
    if kind == 0:
        what, severity = f"an internal error ({information})", Severity.ERROR
    elif kind == 1:
        what = _HEALTH_INFORMATION.get(information, f"a health event ({information})")
        severity = Severity.WARNING if information == 1 else Severity.ERROR
    else:
        return None  # notices, and what only the vendor can explain
    text = f"controller {event.name} reports: {what}"
    return Meaning(reach=Reach.NVME, klass=EventClass.DEGRADED, text=text, severity=severity)


def _ext4(event: Uevent) -> Meaning | None:
    if not event.properties.get("FS_NAME"):
        return None
    match event.properties.get("FS_ACTION"):
        case "ERROR":
            text = "the kernel has found an error (FS_ACTION=ERROR)"
            return Meaning(reach=Reach.NAMED, klass=EventClass.CORRUPTION, text=text)
        case "ABORT":
            text = "the kernel has aborted the journal (FS_ACTION=ABORT)"
            return Meaning(reach=Reach.NAMED, klass=EventClass.READONLY, text=text)
        case "REMOUNT":
            return Meaning(reach=Reach.NAMED)
    return None


def _gfs2(event: Uevent) -> Meaning | None:
    table = printable(event.properties.get("LOCKTABLE", event.name), 128)
    if event.action == "offline":
        text = f"GFS2 has withdrawn {table} from the cluster"
        return Meaning(reach=Reach.GFS2, klass=EventClass.SHUTDOWN, text=text)
    if event.action == "change" and event.properties.get("RECOVERY") == "Failed":
        journal = printable(event.properties.get("JID", "?"), 16)
        text = f"recovery of journal {journal} of {table} has failed"
        return Meaning(reach=Reach.GFS2, klass=EventClass.DEGRADED, text=text)
    return None


_READERS = {"block": _block, "scsi": _scsi, "nvme": _nvme, "ext4": _ext4, "gfs2": _gfs2}
