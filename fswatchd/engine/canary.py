"""A filesystem of our own, whose errors prove that the sources hear.

It is ext4 in anonymous memory behind a loop device, and mounted nowhere: the mount is a descriptor
of this process, no namespace shows it, and all of it goes when the process ends. Its error messages
are rate-limited to none, so that an error moves fanotify and `errors_count` and no line of the
kernel's log alarms anybody else. The log readers are proved by a record of ours in /dev/kmsg, which
cannot have the kernel's facility, and the uevents by a synthetic one of the loop device
(Documentation/ABI/testing/sysfs-uevent).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.errors import FswatchError
from fswatchd.inventory.model import Backing, Superblock
from fswatchd.kernel import block, fs, loop, syscalls
from fswatchd.sources.kernel_lines import CANARY

# A day after its first error ext4 prints a reminder of it, whatever the rate limits say.
LIFETIME_S = 12 * 3600.0
_SIZE = 4 << 20
_MKFS = ("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1")
_MKFS_TIMEOUT_S = 10.0
# Facility 1 (user), level 7 (debug).
_KMSG_PRIORITY = "<15>"
# Also no "callbacks suppressed" line of a past interval: it never passes.
_QUIET = {
    "err_ratelimit_interval_ms": "2000000000",
    "err_ratelimit_burst": "0",
    "msg_ratelimit_burst": "0",
}


class CanaryFilesystem:
    """One such filesystem; `make` it, `fail` it, `close` it."""

    def __init__(self, superblock: Superblock, directory_fd: int) -> None:
        self.superblock = superblock
        self.directory_fd = directory_fd
        self.made = time.monotonic()

    @classmethod
    async def make(cls) -> CanaryFilesystem:
        """Raises FswatchError or OSError where this node cannot have one."""
        memory = os.memfd_create("fswatchd-canary", os.MFD_CLOEXEC)
        try:
            os.truncate(memory, _SIZE)
            # What is formatted here has no name and no other user than this process.
            made = await process.run(
                [*_MKFS, f"/proc/self/fd/{memory}"],
                timeout_s=_MKFS_TIMEOUT_S,
                pass_fds=(memory,),
            )
            if not made.succeeded:
                raise FswatchError(made.describe())
            device, device_fd = loop.attach(memory, autoclear=True)
        finally:
            os.close(memory)
        try:
            return cls._mounted(device, device_fd)
        finally:
            os.close(device_fd)

    @classmethod
    def _mounted(cls, device: str, device_fd: int) -> CanaryFilesystem:
        name = os.path.basename(device)
        mount = syscalls.mount_detached("ext4", {"source": device, "errors": "continue"})
        try:
            for file, value in _QUIET.items():
                _write(f"/sys/fs/ext4/{name}/{file}", value)
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)
        devno = Devno.of(os.fstat(device_fd).st_rdev)
        superblock = Superblock(
            devno=devno,
            fstype="ext4",
            device=name,
            disk_sequence=block.disk_sequence(devno),
            mounts=(),
            backing=Backing(kind="loop"),
            fsid=fs.fsid(directory),
        )
        return cls(superblock, directory)

    def fail(self, token: str) -> None:
        """One error of the filesystem, and one uevent of its device; raises OSError."""
        _write(f"/sys/fs/ext4/{self.superblock.device}/trigger_fs_error", "canary")
        _write(f"/sys/block/{self.superblock.device}/uevent", f"change {token}")

    def close(self) -> None:
        """Let go of it; the kernel unmounts and detaches it."""
        with suppress(OSError):
            os.close(self.directory_fd)


def write_record(token: str) -> None:
    """The canary of the log readers; raises OSError where /dev/kmsg cannot be written."""
    # Without the line break the record stays open for more, and nobody can read it.
    _write("/dev/kmsg", f"{_KMSG_PRIORITY}{CANARY}{token}\n")


def _write(path: str | Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
