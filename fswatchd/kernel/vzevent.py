"""Netlink messages of the Virtuozzo kernel about containers (kernel/ve/vzevent.c).

Protocol 31, multicast group 1. A message has no netlink header; it is text, `ve-start@ID`, where
ID is a number or a UUID. Other kernels do not know the protocol.
"""

import contextlib
import re
import socket
from dataclasses import dataclass

NETLINK_VZEVENT = 31
VZ_EVGRP_ALL = 0x01
# The longest is an event of 31 characters, the sign, and a UUID of 36.
READ_SIZE = 4096

# include/uapi/asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 8 << 20
_MESSAGE = re.compile(rb"([^@\0]{1,31})@([^\s\0]{1,36})[\s\0]*")


class VzEventFormatError(ValueError):
    """The bytes are not an event of this protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VzEvent:
    """`action` is as sent (`ve-start`, `ve-stop`, `ve-mount`, `ve-umount`, `ve-reboot`, …)."""

    action: str
    ve: str


def parse(data: bytes) -> VzEvent:
    """One message; raises VzEventFormatError."""
    match = _MESSAGE.fullmatch(data)
    if match is None or not data.isascii():
        raise VzEventFormatError(f"not an event: {data[:80]!r}")
    return VzEvent(action=match[1].decode("ascii"), ve=match[2].decode("ascii"))


def connect(protocol: int = NETLINK_VZEVENT) -> socket.socket:
    """A non-blocking socket that hears all events. EPROTONOSUPPORT on any other kernel.

    Another protocol is for tests.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.bind((0, VZ_EVGRP_ALL))
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN it stays as it is
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket) -> bytes | None:
    """One message of the kernel; None for what another process has sent.

    Raises BlockingIOError when there is none, OSError(ENOBUFS) once after messages were lost.
    """
    data, (port, _) = sock.recvfrom(READ_SIZE)
    return data if port == 0 else None
