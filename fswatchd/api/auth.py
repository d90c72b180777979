"""Who is asking, from the socket's peer credentials (unix(7): SO_PEERCRED, SO_PEERGROUPS).

The kernel has noted user and groups when the peer connected: what a process says of itself counts
for nothing, and a group that somebody was given meanwhile counts from his next connection on.
"""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from fswatchd.kernel.patience import Patience

_UCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59  # asm-generic/socket.h, since Linux 4.13
_GID = struct.Struct("=I")
_MOST_GROUPS = 65536  # NGROUPS_MAX of linux/limits.h
# Names may be asked of a server (nsswitch.conf(5)), which may not answer.
_NAMES_S = 3.0
_patience = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process on the other end. Whoever may connect may read; root may change."""

    pid: int
    uid: int
    name: str
    gids: frozenset[int] = frozenset()

    @property
    def may_change(self) -> bool:
        """Only root may make the daemon do something."""
        return self.uid == 0

    async def is_one_of(self, named: Sequence[str]) -> bool:
        """Whether it is root, or a user or in a group (`@NAME`) that is named."""
        if self.uid == 0:
            return True
        try:
            what = f"whether {self.uid} is named"
            return await _patience.answer(what, lambda: _is_named(self, tuple(named)), _NAMES_S)
        except TimeoutError:
            return False  # who nobody can be asked about may not


async def peer_of(request: web.Request) -> Peer | None:
    """The peer of a request on a unix socket; None for TCP, where nobody is known."""
    if request.transport is None:
        return None
    sock = request.transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return Peer(pid=pid, uid=uid, name=await _user_name(uid), gids=frozenset({gid, *_groups(sock)}))


def _groups(sock: socket.socket) -> list[int]:
    """The supplementary groups of the peer; none where the kernel does not tell."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * _GID.size)
    except OSError:
        return []
    return [gid for (gid,) in _GID.iter_unpack(packed)]


def _is_named(peer: Peer, named: tuple[str, ...]) -> bool:
    """By number: what a name is looked up as decides, and a name that nobody has matches nobody."""
    for name in named:
        try:
            if name.startswith("@"):
                if grp.getgrnam(name.removeprefix("@")).gr_gid in peer.gids:
                    return True
            elif pwd.getpwnam(name).pw_uid == peer.uid:
                return True
        except KeyError:
            continue
    return False


async def _user_name(uid: int) -> str:
    if uid == 0:
        return "root"
    try:
        return await _patience.answer(
            f"the name of {uid}", lambda: pwd.getpwuid(uid).pw_name, _NAMES_S
        )
    except (KeyError, TimeoutError):
        return f"uid {uid}"
