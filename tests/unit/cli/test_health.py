"""What a monitor makes of `fswatch status`: the exit code, and the first line."""

from __future__ import annotations

from typing import Any

import pytest

from fswatchd.cli import health
from fswatchd.cli.health import status_code
from fswatchd.cli.main import main
from fswatchd.client import Client
from fswatchd.exitcode import Exit

# A node on which all is well says so in these keys.
WELL: dict[str, Any] = {
    "node": "hn1",
    "mode": "observe",
    "since": None,
    "distrust": [],
    "rules": {"problems": [], "read": "2026-11-21T00:00:00Z"},
    "canary": {"problem": ""},
    "unreached": [],
    "platforms": {"problems": {}},
    "disarmed": [],
    "frozen": [],
    "reserve": {"low": []},
    "refused": [],
    "notices": {"waiting": {"ops": 3}, "failing": {}},
    "journal": {"problem": None, "waiting": 0, "dropped": 0},
    "sources": [{"name": "kmsg", "state": "ok", "events": 0, "lost": 0, "detail": "", "blind": []}],
    "ves": [],
    "incidents": [],
}

LEFT = {"ve": "lxc:a", "problem": "it is not thawed"}


def source_in(state: str) -> dict:
    return {"name": "kmsg", "state": state}


def document(*states: str, source: str = "ok") -> dict:
    return {"incidents": [{"state": s} for s in states], "sources": [source_in(source)]}


def demanded(state: str) -> dict:
    return source_in(state) | {"demanded": True}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (document(), Exit.OK),
        (document("open"), Exit.WARNING),
        (document("waiting", "acting"), Exit.WARNING),
        ({"incidents": [{"state": "needs-operator", "hands_off": True}], "sources": []}, Exit.OK),
        (document("open", "needs-operator"), Exit.CRITICAL),
        (document(source="blind"), Exit.CRITICAL),
        (document(source="deaf"), Exit.CRITICAL),
        (document(source="unavailable"), Exit.OK),
        ({"incidents": [], "sources": [demanded("unavailable")]}, Exit.CRITICAL),
        ({"incidents": [], "sources": [demanded("ok")]}, Exit.OK),
        (document(source="off"), Exit.OK),
        (document() | {"frozen": [LEFT]}, Exit.CRITICAL),
        (document() | {"frozen": [{"problem": None}]}, Exit.OK),
        (document() | {"rules": {"problems": ["x"], "read": None}}, Exit.CRITICAL),
        (document() | {"rules": {"problems": ["x"], "read": "then"}}, Exit.OK),
        (document() | {"rules": {"problems": [], "read": None}}, Exit.OK),
    ],
)
def test_the_status_is_a_monitoring_check(status: dict, code: Exit) -> None:
    assert status_code(status) == code


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rules": {"problems": ["x"], "read": "then"}}, "rule files have mistakes"),
        ({"canary": {"problem": "no canary"}}, "sources cannot be proved"),
        ({"unreached": ["loop3"]}, "filesystems not reached: loop3"),
        ({"platforms": {"problems": {"lxc": "x", "incus": "y"}}}, "with problems: lxc, incus"),
        ({"notices": {"failing": {"ops": "HTTP 500"}}}, "channels that fail: ops"),
        ({"reserve": {"low": ["/vz: 1 GiB"]}}, "the reserve is low"),
        ({"journal": {"problem": None, "dropped": 4}}, "4 journal entries were dropped"),
    ],
)
def test_what_does_not_work_on_the_node_is_told(wrong: dict, told: str) -> None:
    status = WELL | wrong
    assert status_code(status) is Exit.OK, "an incident must be seen beside it"
    assert told in health.problems(status)
    assert health.problems(status, "ve101") == "", "it is the node's problem, not each VE's"


def test_nothing_is_said_of_a_node_that_is_well() -> None:
    assert status_code(WELL) is Exit.OK
    assert health.problems(WELL) == ""
    # A journald that does not answer is waited for, and who may not do something is only told no.
    waiting = {"journal": {"problem": "no journald", "waiting": 3, "dropped": 0}}
    assert status_code(WELL | waiting | {"refused": [{}], "disarmed": [{}]}) is Exit.OK


def test_what_is_worst_is_told_first_also_of_a_ve() -> None:
    status = document("open", "needs-operator", "open", source="deaf") | {
        "distrust": [{}],
        "frozen": [LEFT],
        "notices": {"failing": {"ops": "x"}},
    }
    of_ve = (
        "the daemon does not trust itself; left frozen: lxc:a; 1 incident needs an operator; "
        "source kmsg is deaf; 2 incidents are open"
    )
    assert health.problems(status, "a") == of_ve
    assert health.problems(status) == f"{of_ve}; channels that fail: ops"


@pytest.mark.parametrize(
    ("wrong", "first", "code"),
    [
        ({}, "hn1: mode observe, since -", 0),
        (
            {"platforms": {"problems": {"lxc": "x"}}},
            "hn1: mode observe, since -: platforms with problems: lxc",
            0,
        ),
    ],
)
def test_the_first_line_says_what_is_wrong(
    wrong: dict, first: str, code: int, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(Client, "get_at_once", lambda *_, **__: WELL | wrong)
    assert main(["status"]) == code
    assert capsys.readouterr().out.splitlines()[0] == first
