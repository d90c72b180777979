"""Helper process: opens a mount of another mount namespace and hands over a descriptor.

Not in the daemon, because entering a namespace changes the whole process, and because a lookup
in a tenant's namespace must not be able to stop anything but this process.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from fswatchd.devno import Devno
from fswatchd.helpers import wire
from fswatchd.kernel import fs, namespaces


def main(fd: int) -> None:
    """Serve requests until the daemon closes the socket."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    # Ours, opened before any other namespace is entered: a tenant's /proc may show anything.
    own_proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(fileno=fd) as sock:
        while True:
            request, fds = wire.receive(sock)
            if request is None:
                return
            answer, handed = _serve(request, fds, home, own_proc)
            wire.reply(sock, request, answer, handed)
            for handed_fd in handed:
                os.close(handed_fd)


def _serve(
    request: dict[str, Any], fds: list[int], home: int, own_proc: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    try:
        try:
            namespaces.enter(fds[0])
        finally:
            for fd in fds:
                os.close(fd)
        try:
            mount = namespaces.open_mount(request["path"], Devno.parse(request["devno"]), own_proc)
        finally:
            # Staying would keep the owner's filesystems alive through our root directory.
            namespaces.enter(home)
            os.chdir("/")
    except OSError as error:
        return {"errno": error.errno or 5, "message": error.strerror or str(error)}, ()
    return _describe(mount), (mount,)


def _describe(mount: int) -> dict[str, Any]:
    try:
        os.fstat(mount)
    except OSError as error:
        # So an XFS that is shut down can be told from one that cannot be reached.
        return {"fsid": None, "uuid": None, "stat_errno": error.errno, "problem": str(error)}
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        return {"fsid": fs.fsid(directory).hex(), "uuid": fs.filesystem_uuid(directory)}
    except OSError as error:
        return {"fsid": None, "uuid": None, "problem": str(error)}
    finally:
        os.close(directory)
