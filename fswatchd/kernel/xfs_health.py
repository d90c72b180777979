"""The health monitor of an XFS filesystem: ioctl_xfs_health_monitor(2), Linux 7.0.

Follows fs/xfs/libxfs/xfs_fs.h. The monitor is a descriptor from which events are read; it does not
keep the filesystem mounted. There is one a filesystem: whoever comes second gets EEXIST. The
kernel queues at most 32 KiB of events, then tells how many it has dropped.
"""

import enum
import fcntl
import os
import struct
from dataclasses import dataclass

XFS_IOC_HEALTH_MONITOR = 0x40205844
READ_SIZE = 32 * 1024

_REQUEST = struct.Struct("=QB23x")  # flags, format: only what changes, version 0
_EVENT_SIZE = 64
_HEADER = struct.Struct("=IIQ")
_LOST = struct.Struct("=Q")
_MASK = struct.Struct("=I")
_GROUP = struct.Struct("=II")
_INODE = struct.Struct("=IIQ")
_MEDIA = struct.Struct("=QQ")
_FILE_RANGE = struct.Struct("=QQQII")


class Domain(enum.IntEnum):
    """XFS_HEALTH_MONITOR_DOMAIN_*: what an event is about."""

    MOUNT = 0
    FS = 1
    AG = 2
    INODE = 3
    RTGROUP = 4
    DATADEV = 5
    RTDEV = 6
    LOGDEV = 7
    FILERANGE = 8


class Type(enum.IntEnum):
    """XFS_HEALTH_MONITOR_TYPE_*: what has happened.

    SICK was met at run time, CORRUPT was found by an online check; the manual page has the two
    the other way round than the kernel's comments.
    """

    RUNNING = 0
    LOST = 1
    UNMOUNT = 2
    SICK = 3
    CORRUPT = 4
    HEALTHY = 5
    SHUTDOWN = 6
    MEDIA_ERROR = 7
    BUFREAD = 8
    BUFWRITE = 9
    DIOREAD = 10
    DIOWRITE = 11
    DATALOST = 12


# XFS_HEALTH_SHUTDOWN_*
_REASONS = (
    "metadata I/O error",
    "log I/O error",
    "forced",
    "corruption in memory",
    "corruption on disk",
    "device removed",
)


class XfsHealthFormatError(ValueError):
    """The bytes are not a sequence of health events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XfsHealthEvent:
    """One event. `domain` and `type` are numbers when they are newer than this module.

    `details` says where and how much in words; `lost` is how many events were dropped before a
    LOST; `error` is the positive errno of a file range, 0 where there is none.
    """

    domain: int
    type: int
    time_ns: int
    details: str = ""
    lost: int = 0
    error: int = 0


def monitor(root: int) -> int:
    """A non-blocking monitor of the XFS whose root directory `root` is.

    Raises OSError: ENOTTY on a kernel without it or another filesystem, EEXIST when somebody
    monitors it already, EPERM without CAP_SYS_ADMIN or when it is not the root directory.
    """
    # Only with a mutable buffer does ioctl return what the kernel returns.
    fd = fcntl.ioctl(root, XFS_IOC_HEALTH_MONITOR, bytearray(_REQUEST.pack(0, 0)))
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    return int(fd)


def parse(buffer: bytes) -> list[XfsHealthEvent]:
    """The events in what one read has returned; raises XfsHealthFormatError."""
    if len(buffer) % _EVENT_SIZE:
        raise XfsHealthFormatError(f"{len(buffer)} bytes are no whole number of events")
    return [
        _parse_event(buffer[offset : offset + _EVENT_SIZE])
        for offset in range(0, len(buffer), _EVENT_SIZE)
    ]


def _parse_event(raw: bytes) -> XfsHealthEvent:
    domain, kind, time_ns = _HEADER.unpack_from(raw)
    details, lost, error = "", 0, 0
    body = raw[_HEADER.size :]
    match domain:
        case Domain.MOUNT if kind == Type.LOST:
            (lost,) = _LOST.unpack_from(body)
        case Domain.MOUNT if kind == Type.SHUTDOWN:
            (reasons,) = _MASK.unpack_from(body)
            named = [word for bit, word in enumerate(_REASONS) if reasons >> bit & 1]
            details = ", ".join(named) or f"reasons 0x{reasons:x}"
        case Domain.FS:
            details = "structures of the whole filesystem 0x{:x}".format(*_MASK.unpack_from(body))
        case Domain.AG:
            details = "structures 0x{:x} of allocation group {}".format(*_GROUP.unpack_from(body))
        case Domain.RTGROUP:
            details = "structures 0x{:x} of realtime group {}".format(*_GROUP.unpack_from(body))
        case Domain.INODE:
            mask, generation, inode = _INODE.unpack_from(body)
            details = f"structures 0x{mask:x} of inode {inode} (generation {generation})"
        case Domain.DATADEV | Domain.RTDEV | Domain.LOGDEV:
            device = {Domain.RTDEV: "realtime", Domain.LOGDEV: "log"}.get(domain, "data")
            address, count = _MEDIA.unpack_from(body)
            details = f"{count} sectors at {address} of the {device} device"
        case Domain.FILERANGE:
            position, length, inode, generation, error = _FILE_RANGE.unpack_from(body)
            error = min(error, (1 << 32) - error)  # positive, whichever sign it was sent with
            details = f"{length} bytes at {position} of inode {inode} (generation {generation})"
    return XfsHealthEvent(
        domain=domain, type=kind, time_ns=time_ns, details=details, lost=lost, error=error
    )
