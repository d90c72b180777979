"""What a program that reads a tenant's bytes is shut into.

The content of a filesystem is its tenant's choice, and fsck programs have had holes. Such a program
gets the node's programs (read-only) and the one image or device, no network, no process of the
node, no capability, no new privileges, bounded memory, CPU time and tasks. Where this daemon is a
service of systemd it is PID 1 that shuts it in (`unit`), because the service may make no namespaces
itself; elsewhere bubblewrap does (`bubblewrap`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from fswatchd.errors import FswatchError

OPEN_FILES = 256
# What the node has that programs need, besides /usr: links into it, or directories.
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
SETTINGS = ("/etc/ld.so.cache", "/etc/e2fsck.conf", "/etc/mke2fs.conf")
_LEAST_MEMORY = 1 << 30


class SandboxError(FswatchError):
    """The sandbox cannot be built: nothing is run outside of it instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What the program may reach, and how much it may take.

    `device` is the image or block device, `readonly` makes it that; `directory` is one more place
    that may be written (for an undo file), but not beside a device that is only read. `cpu_s`
    counts the CPU's seconds, `memory_bytes` the address space; the usual is half of the machine's
    memory. `threads`: more than one task. `flushes` is for a program that gives its device back
    with an ioctl(2) that none in a sandbox may use (BLKFLSBUF): to it that seems to succeed, see
    `answered`.
    """

    device: str
    readonly: bool = False
    directory: str | None = None
    cpu_s: float = 4 * 3600.0
    memory_bytes: int | None = None
    threads: bool = False
    flushes: bool = False

    @property
    def is_device(self) -> bool:
        """A block device, by where its node is; else an image."""
        return self.device.startswith("/dev/")

    @property
    def most_memory(self) -> int:
        """Bytes of address space."""
        return self.memory_bytes or _half_the_memory()


@cache
def _half_the_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(total // 2, _LEAST_MEMORY)
