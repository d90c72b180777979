"""Helper process: mounts a device nowhere and lets go of it again, so that its log is replayed.

The mount is a descriptor and nothing else (`syscalls.mount_detached`): no namespace shows it, and
nobody can look into it. Not in the daemon, because a mount can hang, and what hangs here is left
behind alone.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from fswatchd.helpers import wire
from fswatchd.kernel import syscalls


def main(fd: int) -> None:
    """Serve one request: `fstype`, `device`, and `flags` of the mount."""
    with socket.socket(fileno=fd) as sock:
        request, _ = wire.receive(sock)
        if request is not None:
            wire.reply(sock, request, _replay(request))


def _replay(request: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, str | None] = {"source": request["device"]}
    try:
        mount = syscalls.mount_detached(
            request["fstype"], options | dict.fromkeys(request["flags"], None)
        )
    except OSError as error:
        return {"errno": error.errno or 5, "message": error.strerror or str(error)}
    os.close(mount)  # the only reference: the filesystem is unmounted when this returns
    return {"replayed": True}
