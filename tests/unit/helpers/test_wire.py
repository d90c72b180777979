from __future__ import annotations

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
