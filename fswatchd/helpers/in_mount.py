"""Runs a program that wants a mount point, on a filesystem that has none in the node's namespace.

A detached mount is put at a directory of a mount namespace of this process alone; it and the
namespace go with the program. It is a copy of a mount: no superblock can come of it.
"""

from __future__ import annotations

import os

from fswatchd.kernel import syscalls

PLACE = "/mnt"


def main(fd: int, argv: list[str]) -> None:
    """Become the program `argv`, which finds the mount `fd` at PLACE."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
    syscalls.move_mount(fd, PLACE)
    os.close(fd)
    os.execvp(argv[0], argv)
