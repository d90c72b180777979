"""Who is asking, as the kernel tells it, and whom a rule names."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.api import auth
from fswatchd.api.auth import Peer, peer_of
from fswatchd.engine.operator import _refuse_another_question
from fswatchd.errors import ConflictError
from tests.unit.builders import incident

NOBODY = pwd.getpwnam("nobody")
GAMES = grp.getgrnam("games").gr_gid
ALONE = Peer(pid=1, uid=NOBODY.pw_uid, name="nobody", gids=frozenset({NOBODY.pw_gid}))
IN_GAMES = Peer(pid=1, uid=NOBODY.pw_uid, name="nobody", gids=frozenset({NOBODY.pw_gid, GAMES}))
ROOT = Peer(pid=1, uid=0, name="root")


@pytest.mark.parametrize(
    ("peer", "named", "may"),
    [
        (ALONE, [], False),
        (ALONE, ["daemon", "@games"], False),
        (ALONE, ["nobody"], True),
        (ALONE, ["nobody-of-this-name", "@no-such-group"], False),
        (IN_GAMES, ["@games"], True),
        (IN_GAMES, ["games"], False),  # a user of that name is somebody else
        (ROOT, [], True),
    ],
)
async def test_whom_a_rule_names_may_answer(peer: Peer, named: list[str], may: bool) -> None:
    assert await peer.is_one_of(named) is may


async def test_the_kernel_names_user_and_groups() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        transport = SimpleNamespace(get_extra_info=lambda _: here)
        peer = await peer_of(cast("Any", SimpleNamespace(transport=transport)))
    assert peer is not None
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.gids == {os.getegid(), *os.getgroups()}


async def test_a_name_server_that_is_lost_holds_up_nobody_and_permits_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def lost(_: object) -> Any:
        answers.wait(60)
        return NOBODY

    monkeypatch.setattr(auth, "_NAMES_S", 0.01)
    monkeypatch.setattr(pwd, "getpwnam", lost)
    monkeypatch.setattr(pwd, "getpwuid", lost)
    try:
        assert not await ALONE.is_one_of(["nobody"])
        assert await auth._user_name(NOBODY.pw_uid) == f"uid {NOBODY.pw_uid}"
        assert await auth._user_name(0) == "root"
        assert await ROOT.is_one_of(["nobody"])
    finally:
        answers.set()


def test_who_may_answer_one_rule_may_not_answer_another_or_for_root() -> None:
    _refuse_another_question(incident(rule="mine"), "mine")
    _refuse_another_question(incident(rule="another"), None)
    with pytest.raises(ConflictError):
        _refuse_another_question(incident(rule="another"), "mine")
    with pytest.raises(ConflictError):
        _refuse_another_question(incident(rule="mine", requested_by="root"), "mine")
