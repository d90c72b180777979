"""inotify(7): what happens to the files of a directory. Without privileges, unlike fanotify.

The bits are those of include/uapi/linux/inotify.h.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

from fswatchd.kernel.syscalls import check, libc

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_MASK_ADD = 0x20000000

READ_SIZE = 1 << 16

_HEAD = struct.Struct("=iIII")  # struct inotify_event


@dataclass(frozen=True, slots=True)
class InotifyEvent:
    """`watch` is the number of the watched directory (-1 for an overflow), `name` what in it."""

    watch: int
    mask: int
    name: str


def init() -> int:
    """A new descriptor that does not block; raises OSError."""
    return check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def watch(fd: int, path: str, mask: int) -> int:
    """Watch a directory; the number of the watch, the same for the same inode. Raises OSError."""
    return check(
        libc.inotify_add_watch(fd, ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint32(mask)), path
    )


def parse(data: bytes) -> list[InotifyEvent]:
    """What read(2) gave, in order."""
    found, offset = [], 0
    while offset + _HEAD.size <= len(data):
        number, mask, _cookie, length = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        name = data[offset : offset + length].split(b"\0", 1)[0]
        found.append(InotifyEvent(number, mask, os.fsdecode(name)))
        offset += length
    return found
