"""Which process serves an nbd device, and from which files (admin-guide/blockdev/nbd.rst).

`pid` in sysfs is there while the device is connected, and names the task that connected it: the
server itself with `qemu-nbd -c`, a client that may have ended since with netlink. Only a process of
root is believed. Nothing is looked up by a name here: the process's descriptors lead to its files.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

SYSFS, PROC = Path("/sys"), Path("/proc")
# Programs whose descriptors are known to mean what they serve.
SERVERS = frozenset({b"qemu-nbd", b"nbdkit", b"qemu-storage-daemon"})
_UID = re.compile(rb"^Uid:\s+(\d+)\s+(\d+)", re.MULTILINE)
_NAMES_FD = 64


def server(device: str, sysfs: Path = SYSFS, proc: Path = PROC) -> int | None:
    """The process of root that serves `nbdN`; None where it is not known or another program."""
    try:
        pid = int((sysfs / "block" / device / "pid").read_text(encoding="ascii"))
        status = (proc / str(pid) / "status").read_bytes()
        program = (proc / str(pid) / "comm").read_bytes().rstrip(b"\n")
    except (OSError, ValueError):
        return None
    match = _UID.search(status)
    if match is None or match.groups() != (b"0", b"0") or program not in SERVERS:
        return None
    return pid


def served(pid: int, proc: Path = PROC) -> list[str]:
    """The files that the server holds open and was told of on its command line, as paths.

    The first is what the device shows. A file of a backing chain is open as well, and found by the
    header of the one above it.
    """
    opened: dict[str, None] = {}
    with suppress(OSError):
        for fd in sorted(os.listdir(proc / str(pid) / "fd"), key=_number)[:_NAMES_FD]:
            with suppress(OSError):
                path = os.readlink(proc / str(pid) / "fd" / fd)
                if path.startswith("/") and not path.startswith("/dev/"):
                    opened[path] = None
    words = _words(pid, proc)
    return [path for path in opened if any(_says(word, path) for word in words)]


def _words(pid: int, proc: Path) -> list[str]:
    """The command line's arguments, and what stands in them as `key=value,…`."""
    with suppress(OSError):
        data = (proc / str(pid) / "cmdline").read_bytes()
        arguments = [os.fsdecode(word) for word in data.split(b"\0") if word][1:]
        parts = [part.rpartition("=")[2] for word in arguments for part in word.split(",")]
        return [*arguments, *parts]
    return []


def _says(word: str, path: str) -> bool:
    """A relative name counts by its last part: the server's directory is not known any more."""
    return word == path or ("/" not in word and word == os.path.basename(path))


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 1 << 30
