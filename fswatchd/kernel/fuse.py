"""Which process serves a FUSE filesystem, as /proc/PID/fdinfo shows it (fs/fuse/dev.c)."""

import os
from collections.abc import Collection
from contextlib import suppress

from fswatchd.devno import Devno

from . import proc
from .pseudofile import lines

_FIELD = "fuse_connection:"
_MINOR_BITS = 20


def servers(wanted: Collection[Devno]) -> dict[Devno, list[int]]:
    """The processes that hold the connection of each of these filesystems.

    Looks at the descriptors of all processes: not for every look at the node. Empty where the
    kernel does not tell.
    """
    found: dict[Devno, list[int]] = {}
    for pid in proc.pids():
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                devno = _connection(pid, fd)
                if devno in wanted and devno is not None:
                    found.setdefault(devno, []).append(pid)
    return found


def _connection(pid: int, fd: str) -> Devno | None:
    try:
        # The name that the device has there; that it is the device, the next file shows.
        if not os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/fuse"):
            return None
        facts = lines(f"/proc/{pid}/fdinfo/{fd}")
    except OSError:
        return None
    for line in facts:
        # Another file may be called so, and have a name of its user's choice in here.
        if line.startswith(_FIELD) and (text := line.removeprefix(_FIELD).strip()).isdecimal():
            number = int(text)
            return Devno(number >> _MINOR_BITS, number & ((1 << _MINOR_BITS) - 1))
    return None
