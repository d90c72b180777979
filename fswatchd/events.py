"""What sources report: events, losses, and the closed sets of words used for them.

Pure values. The words are those users see in JSON, so they are never renamed; the order of
`EventClass` in `_RANK` is the order in which one fault's class is chosen when its witnesses
report different ones.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fswatchd.devno import Devno


class EventClass(enum.StrEnum):
    """What kind of fault an event or an incident is."""

    CORRUPTION = "corruption"
    DATA_LOSS = "data_loss"
    IO_ERROR = "io_error"
    READONLY = "readonly"
    SHUTDOWN = "shutdown"
    MOUNT_FAILURE = "mount_failure"
    SPACE = "space"
    QUOTA = "quota"
    DEVICE_LOST = "device_lost"
    DEGRADED = "degraded"
    NOT_RESPONDING = "not_responding"
    # Never a problem by themselves:
    CORRECTED = "corrected"
    RECOVERED = "recovered"
    REMINDER = "reminder"
    LOST = "lost"
    NONE = "none"

    @property
    def is_problem(self) -> bool:
        """Whether an event of this class may open an incident."""
        return self in _RANK


class Severity(enum.IntEnum):
    """How bad; compares as an integer, shown by its label."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    CRITICAL = 3

    @property
    def label(self) -> str:
        """The word used in rules and JSON."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> Severity:
        """From its label; raises ValueError."""
        try:
            return cls[label.upper()]
        except KeyError:
            raise ValueError(f"no severity {label!r}") from None


class Domain(enum.StrEnum):
    """Which kinds of events on one filesystem are one fault, and so one incident."""

    DAMAGE = "damage"
    SPACE = "space"
    QUOTA = "quota"
    REMOTE = "remote"
    STORM = "storm"  # of no filesystem: too many VEs have failed at once


# The cause before its consequences: a failing device produces damage, damage a read-only
# filesystem. The first of these among an incident's events is the incident's class.
_RANK = {
    klass: rank
    for rank, klass in enumerate(
        (
            EventClass.DEVICE_LOST,
            EventClass.IO_ERROR,
            EventClass.CORRUPTION,
            EventClass.DATA_LOSS,
            EventClass.SHUTDOWN,
            EventClass.READONLY,
            EventClass.MOUNT_FAILURE,
            EventClass.DEGRADED,
            EventClass.SPACE,
            EventClass.QUOTA,
            EventClass.NOT_RESPONDING,
        )
    )
}

# Classes that tell what a filesystem did about an error.
CONSEQUENCES = frozenset({EventClass.READONLY, EventClass.SHUTDOWN})

DEVICE_CLASSES = frozenset({EventClass.DEVICE_LOST, EventClass.IO_ERROR, EventClass.DEGRADED})
# What kernel lines of drivers have in the place of a filesystem type.
_DRIVERS = frozenset({"block", "scsi", "nvme", "dm", "md", "loop", "ploop", "nbd", "rbd"})

_SEVERITY = {
    EventClass.CORRUPTION: Severity.CRITICAL,
    EventClass.DATA_LOSS: Severity.CRITICAL,
    EventClass.DEVICE_LOST: Severity.CRITICAL,
    EventClass.SHUTDOWN: Severity.CRITICAL,
    EventClass.READONLY: Severity.CRITICAL,
    EventClass.IO_ERROR: Severity.ERROR,
    EventClass.MOUNT_FAILURE: Severity.ERROR,
    EventClass.SPACE: Severity.ERROR,
    EventClass.DEGRADED: Severity.ERROR,
    EventClass.NOT_RESPONDING: Severity.WARNING,
    EventClass.QUOTA: Severity.WARNING,
    EventClass.REMINDER: Severity.WARNING,
    EventClass.LOST: Severity.WARNING,
}

_DOMAIN = {
    EventClass.SPACE: Domain.SPACE,
    EventClass.QUOTA: Domain.QUOTA,
    EventClass.NOT_RESPONDING: Domain.REMOTE,
}


def worst_class(classes: Iterable[EventClass]) -> EventClass:
    """The class of one fault from the classes its witnesses reported, in whatever order."""
    return min(
        (klass for klass in classes if klass in _RANK),
        key=_RANK.__getitem__,
        default=EventClass.NONE,
    )


def usual_severity(klass: EventClass) -> Severity:
    """The severity of a class where nothing says otherwise."""
    return _SEVERITY.get(klass, Severity.INFO)


def is_of_device(klass: EventClass, fstype: str | None) -> bool:
    """Whether the device itself reports an error, and not a filesystem that suffers from it."""
    return klass in DEVICE_CLASSES and not names_filesystem(fstype)


def names_filesystem(fstype: str | None) -> bool:
    """Whether it is the type of a filesystem, and not a driver or nothing."""
    return fstype is not None and fstype.partition("-")[0] not in _DRIVERS


def domain_of(klass: EventClass) -> Domain:
    """Which fault of a filesystem an event of this class belongs to."""
    return _DOMAIN.get(klass, Domain.DAMAGE)


class SourceState(enum.StrEnum):
    """Whether a source hears what it is there for."""

    OK = "ok"
    OFF = "off"
    UNAVAILABLE = "unavailable"
    BLIND = "blind"
    DEAF = "deaf"


class Health(enum.StrEnum):
    """What is known of a mounted filesystem."""

    OK = "ok"
    SUSPECT = "suspect"
    DAMAGED = "damaged"
    READONLY = "readonly"
    SHUTDOWN = "shutdown"
    UNKNOWN = "unknown"


class VeState(enum.StrEnum):
    """What a VE is doing."""

    RUNNING = "running"
    STOPPED = "stopped"
    FROZEN = "frozen"
    REPAIRING = "repairing"
    QUARANTINED = "quarantined"
    UNKNOWN = "unknown"


# kmsg and journal repeat each other: together they are one witness.
_WITNESS = {"kmsg": "log", "journal": "log"}


def witnesses(sources: Iterable[str]) -> frozenset[str]:
    """The independent witnesses among these source names."""
    return frozenset(_WITNESS.get(source, source) for source in sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWrite:
    """Data of a file that could not be written or read, as far as the kernel tells.

    `path` is the file's name within its filesystem, None where nobody has looked it up. `offset` is
    where in the file it begins, `size` how much it is at most, both in bytes; `blocks` is the size
    in blocks of the filesystem. What the kernel does not tell is None. `count` is how often it has
    told.
    """

    inode: int
    offset: int | None = None
    size: int | None = None
    blocks: int | None = None
    count: int = 1
    path: str | None = None

    def plus(self, other: LostWrite) -> LostWrite:
        """Both, of one file: the same data may be in both, so the sum is the most it can be."""
        return LostWrite(
            inode=self.inode,
            offset=_least(self.offset, other.offset),
            size=_sum(self.size, other.size),
            blocks=_sum(self.blocks, other.blocks),
            count=self.count + other.count,
            path=self.path or other.path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FsEvent:
    """One thing a source saw.

    `confirms` is true where the event is a fact of the kernel's state (a counter that moved, a
    superblock option, fanotify) and false where it is only text. `device` is the name as printed;
    `devno` is its number where the source knows it. `time_ns` is CLOCK_REALTIME, `mono_ns`
    CLOCK_MONOTONIC, both of the moment the source saw it. `count` is how many errors the event
    stands for. `record` identifies the same record read by two sources (None: it cannot be).
    `server` is the remote server that it is about, as whoever mounted from it calls it. `lost` is
    the data that an event of the class `data_loss` is about, where the kernel names the file.
    `past` is true where what it names is something else by now, or may be: it was said before this
    boot, or before the device was attached to what it has now.
    """

    source: str
    klass: EventClass
    severity: Severity
    confirms: bool
    time_ns: int
    mono_ns: int
    detail: str
    device: str | None = None
    devno: Devno | None = None
    fstype: str | None = None
    errno: int | None = None
    count: int = 1
    record: str | None = None
    server: str | None = None
    lost: LostWrite | None = None
    past: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A source was blind from `since_ns` to `until_ns` (CLOCK_REALTIME).

    `count` is how many records it missed, None when nobody can say. Every `Lost` makes the
    daemon read the state of all filesystems again.
    """

    source: str
    since_ns: int
    until_ns: int
    reason: str
    count: int | None = None


def _least(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


_UNPRINTABLE = re.compile(
    r"[^\x20-\x7e\u00a1-\u200a\u2010-\u2027\u2030-\u2059\u2070-\ud7ff\uf900-\uffef]"
)


def printable(text: str, limit: int = 1000) -> str:
    """`text` with every character escaped that could act on a terminal, a page or a log.

    For all bytes that a tenant can choose: command names, paths, labels, mount sources.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that was not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
