"""fanotify(7): filesystem error events, mount events, and directory watches.

Follows include/uapi/linux/fanotify.h and Documentation/admin-guide/filesystem-monitoring.rst.
Only notification groups: a permission event would let a hung daemon hang its node.

The documentation says that the error is a positive errno; ext4 passes a negative one for some
errors (fs/ext4/super.c, `__ext4_std_error`), so it is made positive here.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

from .syscalls import AT_FDCWD, check, libc

FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_REPORT_FID = 0x200
FAN_REPORT_DFID_NAME = 0xC00
FAN_REPORT_MNT = 0x4000
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_ONLYDIR = 0x8
FAN_MARK_FILESYSTEM = 0x100
FAN_MARK_MNTNS = 0x110
FAN_CREATE = 0x100
FAN_DELETE = 0x200
FAN_MOVED_FROM = 0x40
FAN_MOVED_TO = 0x80
FAN_CLOSE_WRITE = 0x8
FAN_Q_OVERFLOW = 0x4000
FAN_FS_ERROR = 0x8000
FAN_MNT_ATTACH = 0x01000000
FAN_MNT_DETACH = 0x02000000
FAN_ONDIR = 0x40000000
FAN_EVENT_INFO_TYPE_FID = 1
FAN_EVENT_INFO_TYPE_ERROR = 5
FAN_EVENT_INFO_TYPE_MNT = 7

_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH")
_VERSION = 3
# A single read returns at least one event; this many bytes hold some hundreds of them.
READ_SIZE = 16 * 1024


class FanotifyFormatError(ValueError):
    """The bytes are not a sequence of fanotify events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FanotifyEvent:
    """One event. `fsid` is the 8 bytes of `f_fsid`, None where the event carries none.

    `error` is a positive errno and 0 for events other than FAN_FS_ERROR; `count` is how many
    errors the kernel merged into this event. `handle` is the file handle (type, bytes) or None
    for an error of the superblock as a whole. `mount_id` is the unique id of the mount that came,
    went or was moved; what is mounted on that one is not told.
    """

    mask: int
    pid: int
    fsid: bytes | None = None
    handle: tuple[int, bytes] | None = None
    error: int = 0
    count: int = 0
    mount_id: int | None = None

    @property
    def overflow(self) -> bool:
        """The kernel dropped events of this group before this one."""
        return bool(self.mask & FAN_Q_OVERFLOW)


def init(flags: int) -> int:
    """fanotify_init(2): a group's descriptor, non-blocking and close-on-exec."""
    return check(
        libc.fanotify_init(
            ctypes.c_uint(flags | FAN_CLOEXEC | FAN_NONBLOCK), ctypes.c_uint(os.O_CLOEXEC)
        ),
        "fanotify_init",
    )


def init_errors() -> int:
    """A group for FAN_FS_ERROR. Raises OSError: EMFILE past max_user_groups, EPERM, ENOSYS."""
    return init(FAN_REPORT_FID | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS)


def mark(group: int, flags: int, mask: int, dir_fd: int, path: str | None = ".") -> None:
    """fanotify_mark(2). `dir_fd` may be O_PATH when `path` is given."""
    check(
        libc.fanotify_mark(
            ctypes.c_int(group),
            ctypes.c_uint(flags),
            ctypes.c_uint64(mask),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(None if path is None else os.fsencode(path)),
        ),
        "fanotify_mark",
    )


def mark_superblock(group: int, fd: int) -> None:
    """Ask for the errors of the superblock that the directory `fd` is on."""
    mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_FS_ERROR, fd)


def mark_mount_namespace(group: int, ns_fd: int) -> None:
    """Ask for mounts that come and go in the namespace `ns_fd` (Linux 6.14)."""
    mark(group, FAN_MARK_ADD | FAN_MARK_MNTNS, FAN_MNT_ATTACH | FAN_MNT_DETACH, ns_fd, None)


def mark_directory(group: int, path: str) -> None:
    """Ask for entries that come and go in the directory `path`."""
    mask = FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_CLOSE_WRITE | FAN_ONDIR
    mark(group, FAN_MARK_ADD | FAN_MARK_ONLYDIR, mask | 0x08000000, AT_FDCWD, path)


def marked_devices(group: int) -> set[int]:
    """The `s_dev` (major << 20 | minor) of every superblock the group still watches.

    An unmount removes a mark without an event; this is the only way to see it
    (/proc/PID/fdinfo, proc_pid_fdinfo(5)).
    """
    found = set()
    with open(f"/proc/self/fdinfo/{group}", encoding="ascii") as file:
        for line in file:
            if line.startswith("fanotify sdev:"):
                found.add(int(line.split()[1].partition(":")[2], 16))
    return found


def parse(buffer: bytes) -> list[FanotifyEvent]:
    """All events in what one read(2) returned; raises FanotifyFormatError."""
    events = []
    offset = 0
    while offset < len(buffer):
        if len(buffer) - offset < _METADATA.size:
            raise FanotifyFormatError(f"{len(buffer) - offset} bytes where an event should start")
        length, version, _, header, mask, _fd, pid = _METADATA.unpack_from(buffer, offset)
        if version != _VERSION:
            raise FanotifyFormatError(f"metadata version {version}, known is {_VERSION}")
        if not _METADATA.size <= header <= length <= len(buffer) - offset:
            raise FanotifyFormatError(f"event of {length} bytes with a header of {header}")
        events.append(_parse_event(mask, pid, buffer[offset + header : offset + length]))
        offset += length
    return events


def _parse_event(mask: int, pid: int, records: bytes) -> FanotifyEvent:
    fsid: bytes | None = None
    handle: tuple[int, bytes] | None = None
    error = count = 0
    mount_id: int | None = None
    offset = 0
    while offset < len(records):
        if len(records) - offset < _INFO.size:
            raise FanotifyFormatError("cut information record")
        kind, _, length = _INFO.unpack_from(records, offset)
        if not _INFO.size <= length <= len(records) - offset:
            raise FanotifyFormatError(f"information record of {length} bytes")
        body = records[offset + _INFO.size : offset + length]
        if kind == FAN_EVENT_INFO_TYPE_FID:
            fsid, handle = _parse_fid(body)
        elif kind == FAN_EVENT_INFO_TYPE_ERROR:
            if len(body) < 8:
                raise FanotifyFormatError("cut error record")
            error, count = struct.unpack_from("=iI", body)
        elif kind == FAN_EVENT_INFO_TYPE_MNT:
            if len(body) < 12:
                raise FanotifyFormatError("cut mount record")
            (mount_id,) = struct.unpack_from("=Q", body, 4)
        offset += length
    return FanotifyEvent(
        mask=mask,
        pid=pid,
        fsid=fsid,
        handle=handle,
        error=abs(error),
        count=count,
        mount_id=mount_id,
    )


def _parse_fid(body: bytes) -> tuple[bytes, tuple[int, bytes] | None]:
    if len(body) < 16:
        raise FanotifyFormatError("cut file identifier record")
    size, kind = struct.unpack_from("=Ii", body, 8)
    if size > len(body) - 16:
        raise FanotifyFormatError(f"file handle of {size} bytes")
    return body[:8], ((kind, body[16 : 16 + size]) if size else None)
