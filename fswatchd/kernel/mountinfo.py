"""The text of /proc/PID/mountinfo (proc_pid_mountinfo(5)), for kernels without statmount.

Fields are separated by spaces and the kernel writes space, tab, newline and backslash in them as
octal escapes, so a mount point or source chosen by a tenant cannot forge a line or a field.
"""

import re

from fswatchd.devno import Devno

from . import pseudofile
from .mounts import Mount

_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountinfoError(ValueError):
    """A line does not have the form of proc_pid_mountinfo(5)."""


def parse_line(line: str) -> Mount:
    """One line of mountinfo; raises MountinfoError."""
    head, separator, tail = line.partition(" - ")
    fields, rest = head.split(" "), tail.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 3:
        raise MountinfoError(f"not a mountinfo line: {line!r}")
    try:
        mount_id, parent_id = int(fields[0]), int(fields[1])
        devno = Devno.parse(fields[2])
    except ValueError:
        raise MountinfoError(f"not a mountinfo line: {line!r}") from None
    options = rest[2].split(",")
    peers = dict(field.split(":", 1) for field in fields[6:] if ":" in field)
    return Mount(
        mount_id=mount_id,
        devno=devno,
        fstype=rest[0],
        root=unescape(fields[3]),
        point=unescape(fields[4]),
        source=unescape(rest[1]),
        superblock_options=tuple(options[1:]),
        superblock_readonly=options[0] == "ro",
        readonly="ro" in fields[5].split(","),
        parent_id=parent_id,
        peer_group=_number(peers.get("shared")),
        master=_number(peers.get("master")),
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def read(pid: int | str, unread: list[str] | None = None) -> list[Mount]:
    """All mounts in the namespace of process `pid`. Raises OSError when the process is gone.

    A line that is none costs no other one; it is added to `unread`. The file is closed before
    returning: an open mountinfo keeps its namespace alive.
    """
    found = []
    for line in pseudofile.lines(f"/proc/{pid}/mountinfo"):
        try:
            found.append(parse_line(line))
        except MountinfoError:
            if unread is not None:
                unread.append(line)
    return found


def unescape(text: str) -> str:
    """Undo the kernel's octal escapes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
