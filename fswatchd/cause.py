"""Which of the things that a filesystem rests on is to blame for its trouble. Pure.

`engine.substrate` reads the layers as they are now; what is said here of them decides whether a
repair waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fswatchd.events import EventClass, Health
from fswatchd.units import show_size

# Less than this is no room for a write: the larger of 1 MiB, and a thousandth of up to 64 GiB.
_FULL_BYTES = 1 << 20
_FULL_SHARE = 1000
_FULL_MOST_BYTES = 64 << 20

SUSPENDED = "suspended"
# Of dm; of SCSI (drivers/scsi/scsi_sysfs.c); of NVMe (drivers/nvme/host/sysfs.c).
_IN_PASSING = frozenset(
    {
        SUSPENDED,
        "blocked",
        "quiesce",
        "created",
        "created-blocked",
        "new",
        "resetting",
        "connecting",
    }
)
_STOPPED = {Health.SHUTDOWN: "it is shut down", Health.READONLY: "it is read-only"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Something that an incident's filesystem rests on, as it is now; None is not known.

    `name` is `/dev/loop3`, or a filesystem in words. For a device: `errors` it has reported,
    `readonly`, `missing` members of an array, `failed_paths` to it beside others that work, its
    `state` where it does not run, `short_by` bytes that its image lacks, and in words what a thin
    pool `lacks` room for. For a filesystem: its room, its health, and `damaged` where an open
    incident says so. For a VE that serves what lies above it: its `state` where it does not run.
    `since_ns` (CLOCK_REALTIME) is when its own incident began, whose id is `incident`;
    `full_incident` is that about its room. `ves` are all that depend on it.
    """

    kind: Literal["device", "filesystem", "ve"]
    name: str
    since_ns: int | None = None
    errors: int = 0
    readonly: bool = False
    missing: int = 0
    failed_paths: int = 0
    state: str = ""
    short_by: int = 0
    lacks: str = ""
    free_bytes: int | None = None
    total_bytes: int = 0
    free_inodes: int | None = None
    health: Health = Health.UNKNOWN
    damaged: str = ""
    answers: bool = True
    incident: str | None = None
    full_incident: str | None = None
    ves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What is to blame: `kind` is `space`, `device`, `filesystem` or `ve`, `name` the object.

    `incident` is the object's own open incident, `ves` are all that depend on it.
    """

    kind: str
    name: str
    text: str
    since_ns: int | None = None
    incident: str | None = None
    ves: tuple[str, ...] = ()


def blame(beneath: Sequence[Layer]) -> Cause | None:
    """The deepest of the layers that is not well: all above it only suffer from it."""
    place = culprit(beneath)
    if place is None:
        return None
    layer = beneath[place]
    space = is_full(layer) or fault_of_device(layer) is EventClass.SPACE
    return Cause(
        kind="space" if space else layer.kind,
        name=layer.name,
        text=unwell(layer) or "",
        since_ns=layer.since_ns,
        incident=layer.full_incident if space else layer.incident,
        ves=layer.ves,
    )


def culprit(beneath: Sequence[Layer]) -> int | None:
    """Which of the layers `blame` blames."""
    places = reversed(range(len(beneath)))
    return next((place for place in places if unwell(beneath[place]) is not None), None)


def fault_of_device(layer: Layer) -> EventClass | None:
    """What is wrong with a device by what can be read of it, None where nothing is.

    Not the errors that it has reported: these are events already. Nor a state that it passes
    through: LVM suspends a device whenever it changes it, and a path is blocked while it is sought.
    """
    if layer.kind != "device":
        return None
    if layer.short_by:
        return EventClass.IO_ERROR
    if layer.state:
        return None if layer.state in _IN_PASSING else EventClass.DEVICE_LOST
    if layer.lacks:
        return EventClass.SPACE
    if layer.missing:
        return EventClass.DEGRADED
    return EventClass.READONLY if layer.readonly else None


def is_full(layer: Layer) -> bool:
    """Whether a filesystem has no room for what a write to an image on it needs."""
    if layer.free_bytes is None:
        return False
    if layer.free_inodes == 0:
        return True
    share = min(layer.total_bytes // _FULL_SHARE, _FULL_MOST_BYTES)
    return layer.free_bytes < max(_FULL_BYTES, share)


def unwell(layer: Layer) -> str | None:
    """What is wrong with a layer, in words; None where nothing is."""
    if layer.kind == "device":
        if layer.short_by:
            return f"its image file is {show_size(layer.short_by)} shorter than the device"
        if layer.state:
            return f"it is {layer.state}"
        if layer.lacks:
            return layer.lacks
        if layer.missing:
            return f"{layer.missing} of its members are missing"
        if layer.errors:
            return f"it has reported {layer.errors} errors"
        return "it is read-only" if layer.readonly else None
    if layer.kind == "ve":
        return f"it is {layer.state}" if layer.state else None
    if not layer.answers:
        return "it does not answer"
    if is_full(layer):
        if layer.free_inodes == 0:
            return "it has no inodes left"
        return f"it is full: {show_size(layer.free_bytes or 0)} left"
    return _STOPPED.get(layer.health) or layer.damaged or None
