from __future__ import annotations

import fcntl
import resource
import socket

import pytest

from fswatchd.helpers import wire


@pytest.mark.parametrize("unread", [False, True])
def test_the_end_of_the_other_side_is_no_error(unread: bool) -> None:
    """A daemon that stops may leave an answer unread, and the kernel then resets the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        if unread:
            wire.send(theirs, {"answer": 1})
        ours.close()
        assert wire.receive(theirs) == (None, [])


def test_an_answer_that_nobody_waits_for_is_no_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        wire.reply(theirs, {"number": 1}, {"answer": 1})
        assert wire.receive(theirs) == (None, [])


def test_a_descriptor_with_a_high_number_can_be_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("descriptors above 1023 are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1500))
    try:
        assert high.fileno() >= 1500
        assert not wire.is_readable(high, 0.0)
        theirs.close()
        assert wire.is_readable(high, 10.0)
    finally:
        for one in (ours, theirs, high):
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
