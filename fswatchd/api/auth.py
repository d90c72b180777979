"""Who is asking, from the socket's peer credentials (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import pwd
import socket
import struct
from dataclasses import dataclass

from aiohttp import web

_UCRED = struct.Struct("=iII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process on the other end. Whoever may connect may read; root may change."""

    pid: int
    uid: int
    name: str

    @property
    def may_change(self) -> bool:
        """Only root may make the daemon do something."""
        return self.uid == 0


def peer_of(request: web.Request) -> Peer | None:
    """The peer of a request on a unix socket; None for TCP, where nobody is known."""
    if request.transport is None:
        return None
    sock = request.transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid=pid, uid=uid, name=_user_name(uid))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
