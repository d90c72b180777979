"""What xfs_healer(8) writes to the journal of an XFS whose health monitor it holds.

A line is `MOUNTPOINT[ OBJECT]: STATUS` (healer/ in xfsprogs 7.2), from the service
`xfs_healer@MOUNTPOINT.service`. OBJECT may be the path of a tenant's file, with whatever is in its
name, a line break too: only how a line ends is looked at, nothing that would close an incident is
taken from one, and what is taken confirms nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fswatchd.events import EventClass, printable
from fswatchd.kernel import proc

# Before each of its lines, in the detail of an event.
HEALER = "xfs_healer: "
# The slice of all its services; journald takes it from the sender's cgroup.
SLICE = "system-xfs_healer.slice"

# The end of its last word about a filesystem that it cannot repair while it is mounted.
GIVEN_UP = "offline repair required."

# Its last word where somebody else has the monitor: it ends then, and nobody starts it again.
_REFUSED = ": XFS health monitoring already running."
# xfs_healer_start(8) starts one for each XFS that is mounted; a command name has 15 bytes.
_STARTER = "xfs_healer_start"[:15]

_UNIT = re.compile(r"xfs_healer@(.+)\.service")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_LOST = re.compile(r": (\d+) events lost")
_CLASSES = (
    (re.compile(r": filesystem shut down due to [^:]+"), EventClass.SHUTDOWN),
    (re.compile(r": media error"), EventClass.IO_ERROR),
    (re.compile(r": \w+ failed"), EventClass.IO_ERROR),
    (re.compile(r": (?:sick|corrupt)"), EventClass.CORRUPTION),
    (re.compile(r": .*offline repair (?:required|recommended)\."), EventClass.CORRUPTION),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealerLine:
    """What a line says of the XFS at `mountpoint`; `lost` events that the healer has missed.

    `refused` is true where it could not have the monitor.
    """

    mountpoint: str
    klass: EventClass
    detail: str
    lost: int = 0
    refused: bool = False


def read(unit: str, message: str) -> HealerLine | None:
    """A line of a service; None where it tells of nothing wrong."""
    match = _UNIT.fullmatch(unit)
    if match is None:
        return None
    mountpoint = _path_of(match[1])
    if not message.startswith(mountpoint):
        return None
    said = message[len(mountpoint) :]
    detail = f"{HEALER}{printable(message)}"
    if said == _REFUSED:
        return HealerLine(mountpoint=mountpoint, klass=EventClass.NONE, detail=detail, refused=True)
    if (lost := _LOST.fullmatch(said)) is not None:
        klass, count = EventClass.LOST, min(int(lost[1]), 1 << 32)
        return HealerLine(mountpoint=mountpoint, klass=klass, detail=detail, lost=count)
    for pattern, klass in _CLASSES:
        # Anything may stand before the last ": ", also one that a file's name brings along.
        start = said.rfind(": ")
        if start >= 0 and pattern.fullmatch(said, start):
            return HealerLine(mountpoint=mountpoint, klass=klass, detail=detail)
    return None


def is_started_for_all() -> bool:
    """Whether each XFS that is mounted on the node gets a healer."""
    return any(
        proc.command_name(pid) == _STARTER and proc.is_of_the_node(pid) for pid in proc.pids()
    )


def _path_of(instance: str) -> str:
    """The path that systemd-escape(1) `--path` has made the name of an instance of."""
    path = instance.replace("-", "/")
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), path)
    text = raw.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    return "/" + text.strip("/")
